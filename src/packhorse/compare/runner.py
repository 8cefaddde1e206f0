"""Run `packhorse compare`: sample, reference, interleaved trials, evaluation, reports."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from packhorse.batching.policies import PLANNED
from packhorse.calibration import stored_calibration
from packhorse.compare.config import CompareConfig
from packhorse.compare.document import Comparison
from packhorse.compare.evaluate import TrialEvaluator, TrialRuns
from packhorse.compare.report import write_reports
from packhorse.compare.sample import Sample, take_sample
from packhorse.compare.trial import RepeatOutcome, finished_repeat, run_repeat
from packhorse.compare.verdict import comparable_trials, find_knee, pareto_trials, recommend
from packhorse.embeddings import read_layout
from packhorse.errors import ConfigError, OutputError, PackhorseError
from packhorse.inference.model import check_least, prepare_for
from packhorse.inputs import for_model
from packhorse.jobs.frame import date_of
from packhorse.jobs.manifest import versions
from packhorse.models import cache_root, prepare_embedding_model
from packhorse.outputs import write_json
from packhorse.params.prompt_options import PromptOptions, prompt_settings
from packhorse.profiling.hardware import machine
from packhorse.reports.progress import StageReporter
from packhorse.storage.atomic_files import make_folder
from packhorse.storage.json_files import read_object
from packhorse.storage.remote_files import local_input
from packhorse.storage.urls import public_name
from packhorse.techniques.calibrations import calibrated_in_child_process
from packhorse.techniques.grid import (
    REFERENCE_BATCHING,
    Combination,
    combinations,
    engine_config,
    option_words,
    packhorse_command,
)

PLAN_FORMAT = 1
PLAIN = ("--no-share-prefixes", "--no-deduplicate")
"""The reference computes every row separately, without shared prefixes or deduplication."""


@dataclass(slots=True)
class Progress:
    """Report after each run how long it took and the estimated time left."""

    observer: StageReporter
    runs: int
    started: float
    done: int = 0

    def report(self, name: str, number: int, outcome: RepeatOutcome) -> None:
        self.done += 1
        left = (time.monotonic() - self.started) / self.done * (self.runs - self.done)
        if outcome.repeat is None:
            result = f"failed: {outcome.reason}"
        else:
            result = f"{outcome.repeat.figures['seconds']['generate']:.1f} s"
        self.observer.stage(
            f"[{self.done}/{self.runs}] {name}, repeat {number + 1}: {result}; "
            f"about {left / 60:.0f} min left"
        )


def compare(config: CompareConfig, observer: StageReporter) -> Comparison:
    """Run every combination and write the reports to `config.output`.

    Every measurement is stored in `config.output`/runs at once, so an interrupted comparison loses
    nothing and `resume` continues it. A trial that fails is a row with a reason.

    Raises:
        ConfigError: an empty grid, or numbers out of range.
        InputError: an unreadable input.
        OutputError: the folder holds another comparison, or the disk is full.
        ModelError: a model that cannot be prepared.
    """
    _check(config)
    grid = combinations(
        config.engines,
        config.quantizations,
        config.batchings,
        config.batch_size,
        config.max_batch_tokens,
    )
    reference = _reference(config)
    if config.embeddings is not None:
        read_layout(prepare_embedding_model(config.embeddings, observer.stage))
    runs = make_folder(config.output / "runs")
    with local_input(config.input, observer.stage) as source:
        sample = take_sample(
            source,
            for_model(config.reading, config.model),
            config.sample,
            runs / "sample.jsonl",
            config.labels,
            observer.stage,
        )
    date = _bind(config, sample, runs / "plan.json")
    observer.stage(
        f"{len(sample.requests)} of {sample.total} rows, {len(grid)} techniques, "
        f"{config.repeats} repeats"
    )
    for combination in (reference, *grid):
        _prepare(config, combination, observer)
    arguments = _run_arguments(config, sample, date)
    reference_output = _run_reference(config, reference, arguments, sample, date, observer)
    trials = _run_trials(config, grid, arguments, runs, observer)
    observer.stage("evaluating the answers")
    evaluator = TrialEvaluator(config, sample, reference, reference_output, date, observer)
    judged = tuple(evaluator.evaluate_trial(trial) for trial in trials)
    ranked = pareto_trials(comparable_trials(judged))
    knee = find_knee(ranked)
    comparison = Comparison(
        command=config.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=config.model,
        machine=machine(),
        versions=versions(),
        sample=_sample_facts(config, sample, evaluator),
        reference={"name": reference.name, **evaluator.reference_facts()},
        limits=asdict(config.limits),
        trials=judged,
        effects=evaluator.measure_effects(trials),
        pareto=tuple(trial.name for trial in ranked),
        knee=knee.name if knee else "",
        recommendation=recommend(judged, config.limits),
    )
    write_reports(comparison, config.output)
    return comparison


def _check(config: CompareConfig) -> None:
    """Raise ConfigError for a number out of range."""
    counts = {
        "repeats": config.repeats,
        "max_new_tokens": config.max_new_tokens,
        "batch_size": config.batch_size,
    }
    check_least(counts, 1)
    check_least({"warmup_rows": config.warmup_rows}, 0)
    agreement = config.limits.min_agreement
    if agreement is not None and not 0 <= agreement <= 1:
        raise ConfigError(
            f"min_agreement must be between 0 and 1, got {agreement}",
            "it is a share: 0.95 allows 5 % difference",
        )


def _reference(config: CompareConfig) -> Combination:
    engine, _, quantization = config.reference.partition(":")
    (combination,) = combinations(
        [engine], [quantization or "float32"], [REFERENCE_BATCHING], config.batch_size
    )
    return combination


def _bind(config: CompareConfig, sample: Sample, path: Path) -> str:
    """Bind the folder to one comparison, so that results of different ones are never mixed.

    Returns:
        The date that chat templates write in all runs, also after resuming.
    """
    date = date_of(config.reading.date).date().isoformat()
    plan: dict[str, Any] = {
        "format": PLAN_FORMAT,
        "model": config.model,
        "sample": sample.sha256,
        "max_new_tokens": config.max_new_tokens,
        "warmup_rows": config.warmup_rows,
        "batch_size": config.batch_size,
        "max_batch_tokens": config.max_batch_tokens,
        "system": config.reading.system,
        **_own_prompt_settings(config),
    }
    if path.exists():
        found = read_object(path, error=OutputError, hint="choose another folder with -o")
        if not config.resume:
            raise OutputError(
                f"{config.output} already contains a comparison",
                "continue it with --resume, or choose another folder with -o",
            )
        changed = [name for name in plan if plan[name] != found.get(name)]
        if changed:
            raise OutputError(
                f"{config.output} contains a comparison with another {', '.join(changed)}",
                "choose another folder with -o",
            )
        date = found.get("date", date)
    write_json(path, {**plan, "date": date})
    return date


def _prepare(config: CompareConfig, combination: Combination, observer: StageReporter) -> None:
    """Fetch, convert and, for `planned`, calibrate before anything is timed.

    The calibration decides the workers of every later run of that engine and format. What cannot be
    prepared fails in its trial.
    """
    engine = engine_config(combination.engine, combination.quantization)
    try:
        prepared = prepare_for(
            config.model, engine, allow_pickle=config.allow_pickle, report=observer.stage
        )
        if combination.batching == PLANNED and stored_calibration(prepared, engine) is None:
            calibrated_in_child_process(
                config.model, prepared, engine, observer.stage, config.allow_pickle
            )
    except PackhorseError as error:
        observer.stage(f"{combination.name}: {error}")


def _run_arguments(config: CompareConfig, sample: Sample, date: str) -> list[str]:
    arguments = ["run", config.model, str(sample.path), "--date", date]
    arguments += ["--max-new-tokens", str(config.max_new_tokens)]
    arguments += ["--warm-up-rows", str(config.warmup_rows)]
    if config.reading.system is not None:
        arguments += ["--system", config.reading.system]
    arguments += option_words(config.reading.prompts, PromptOptions())
    if config.allow_pickle:
        arguments += ["--allow-pickle"]
    return arguments


def _own_prompt_settings(config: CompareConfig) -> dict[str, Any]:
    """Return the settings of prompts that differ from their defaults."""
    settings = prompt_settings(config.reading.prompts)
    return {name: value for name, value in settings.items() if value is not None}


def _run_reference(
    config: CompareConfig,
    reference: Combination,
    arguments: Sequence[str],
    sample: Sample,
    date: str,
    observer: StageReporter,
) -> Path:
    """Return the output of the reference run, from the cache if an identical run exists."""
    engine = engine_config(reference.engine, reference.quantization)
    prepared = prepare_for(config.model, engine, allow_pickle=config.allow_pickle)
    identity = {
        "model": prepared.fingerprint,
        "reference": reference.name,
        "sample": sample.sha256,
        "max_new_tokens": config.max_new_tokens,
        "system": config.reading.system,
        **_own_prompt_settings(config),
        "versions": versions(),
        **({"date": date} if prepared.codec().writes_date else {}),
    }
    key = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_root() / "references" / key
    outcome = finished_repeat(folder)
    if outcome is None or outcome.repeat is None:
        observer.stage(f"running the reference: {reference.name}")
        outcome = run_repeat(
            folder, 0, packhorse_command([*arguments, *reference.options(), *PLAIN])
        )
    else:
        observer.stage(f"the reference, {reference.name}, was found in the cache")
    if outcome.repeat is None:
        raise ConfigError(
            f"the reference {reference.name} failed: {outcome.reason}",
            "choose another one with --reference ENGINE:FORMAT",
        )
    return folder / "answers.jsonl"


def _run_trials(
    config: CompareConfig,
    grid: Sequence[Combination],
    arguments: Sequence[str],
    runs: Path,
    observer: StageReporter,
) -> list[TrialRuns]:
    """Run every combination once, then all of them again, so a slow minute affects all alike."""
    trials = [TrialRuns(combination, [], []) for combination in grid]
    progress = Progress(observer, len(grid) * config.repeats, time.monotonic())
    for number in range(config.repeats):
        for trial in trials:
            folder = runs / trial.combination.slug / str(number)
            outcome = finished_repeat(folder) if config.resume else None
            if outcome is None or outcome.repeat is None:
                command = packhorse_command([*arguments, *trial.combination.options()])
                outcome = run_repeat(folder, number, command)
            trial.outcomes.append(outcome)
            trial.outputs.append(folder / "answers.jsonl")
            progress.report(trial.combination.name, number, outcome)
    return trials


def _sample_facts(
    config: CompareConfig, sample: Sample, evaluator: TrialEvaluator
) -> dict[str, Any]:
    return {
        "input": public_name(config.input),
        "rows": len(sample.requests),
        "rows_in_input": sample.total,
        "skipped": sample.skipped,
        "max_new_tokens": config.max_new_tokens,
        **evaluator.prompt_facts(),
    }
