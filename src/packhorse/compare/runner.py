"""`packhorse compare` as a function: sample, reference, interleaved trials, judgement, reports."""

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
from packhorse.compare.evaluate import StageReporter, TrialEvaluator, TrialRuns
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
from packhorse.profiling.hardware import machine
from packhorse.storage.atomic_files import make_folder
from packhorse.storage.json_files import read_object
from packhorse.techniques.calibrations import calibrated_in_child_process
from packhorse.techniques.grid import (
    REFERENCE_BATCHING,
    Combination,
    combinations,
    engine_config,
    packhorse_command,
)

PLAN_FORMAT = 1
PLAIN = ("--no-share-prefixes", "--no-deduplicate")
"""The reference saves no work: every row is computed whole, for itself."""


@dataclass(slots=True)
class Progress:
    """Says after each run what it took and how long the rest will take."""

    observer: StageReporter
    runs: int
    started: float
    done: int = 0

    def report(self, name: str, number: int, outcome: RepeatOutcome) -> None:
        self.done += 1
        left = (time.monotonic() - self.started) / self.done * (self.runs - self.done)
        if outcome.repeat is None:
            came_to = f"failed: {outcome.reason}"
        else:
            came_to = f"{outcome.repeat.figures['seconds']['generate']:.1f} s"
        self.observer.stage(
            f"[{self.done}/{self.runs}] {name}, repeat {number + 1}: {came_to}; "
            f"about {left / 60:.0f} min left"
        )


def compare(config: CompareConfig, observer: StageReporter) -> Comparison:
    """Runs every combination and writes the reports to `config.output`.

    Everything measured lies in `config.output`/runs as it is measured: a comparison that ends
    early loses nothing, and `resume` goes on from there. A trial that dies is a row with a reason.

    Raises ConfigError for a grid that is empty or limits that make no sense, InputError for an
    unreadable input, OutputError for a folder of another comparison or a full disk, ModelError for
    a model that cannot be prepared.
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
    sample = take_sample(
        Path(config.input),
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
    observer.stage("judging the answers")
    evaluator = TrialEvaluator(config, sample, reference, reference_output, date, observer)
    judged = tuple(evaluator.trial(trial) for trial in trials)
    ranked = pareto_trials(comparable_trials(judged))
    bend = find_knee(ranked)
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
        effects=evaluator.effects(trials),
        pareto=tuple(trial.name for trial in ranked),
        knee=bend.name if bend else "",
        recommendation=recommend(judged, config.limits),
    )
    write_reports(comparison, config.output)
    return comparison


def _check(config: CompareConfig) -> None:
    """ConfigError for a number that makes no sense."""
    counts = {
        "repeats": config.repeats,
        "max_new_tokens": config.max_new_tokens,
        "batch_size": config.batch_size,
    }
    check_least(counts, 1)
    check_least({"warmup_rows": config.warmup_rows}, 0)
    agreement = config.limits.min_agreement
    if agreement is not None and not 0 <= agreement <= 1:
        raise ConfigError(f"min_agreement is {agreement}", "it is a share from 0 to 1")


def _reference(config: CompareConfig) -> Combination:
    engine, _, quantization = config.reference.partition(":")
    (combination,) = combinations(
        [engine], [quantization or "float32"], [REFERENCE_BATCHING], config.batch_size
    )
    return combination


def _bind(config: CompareConfig, sample: Sample, path: Path) -> str:
    """Ties the folder to one comparison: results of another one must never be mixed in.

    Returns the date that chat templates write in all of its runs, whenever it is resumed.
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
    }
    if path.exists():
        found = read_object(path, error=OutputError, hint="name another folder: -o")
        if not config.resume:
            raise OutputError(
                f"{config.output} holds a comparison already",
                "go on with it: --resume; or name another folder: -o",
            )
        changed = [name for name in plan if plan[name] != found.get(name)]
        if changed:
            raise OutputError(
                f"{config.output} holds a comparison with another {', '.join(changed)}",
                "name another folder: -o",
            )
        date = found.get("date", date)
    write_json(path, {**plan, "date": date})
    return date


def _prepare(config: CompareConfig, combination: Combination, observer: StageReporter) -> None:
    """Fetches, converts and, for `planned`, calibrates before anything is timed: what is measured
    meanwhile decides the workers of every later run of that engine and format. What cannot be
    prepared fails in its trial."""
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
    if config.allow_pickle:
        arguments += ["--allow-pickle"]
    return arguments


def _run_reference(
    config: CompareConfig,
    reference: Combination,
    arguments: Sequence[str],
    sample: Sample,
    date: str,
    observer: StageReporter,
) -> Path:
    """The output of the reference run, from the cache when this very run was made before."""
    engine = engine_config(reference.engine, reference.quantization)
    prepared = prepare_for(config.model, engine, allow_pickle=config.allow_pickle)
    identity = {
        "model": prepared.fingerprint,
        "reference": reference.name,
        "sample": sample.sha256,
        "max_new_tokens": config.max_new_tokens,
        "system": config.reading.system,
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
        observer.stage(f"the reference, {reference.name}, is in the cache")
    if outcome.repeat is None:
        raise ConfigError(
            f"the reference {reference.name} failed: {outcome.reason}",
            "choose another one: --reference ENGINE:FORMAT",
        )
    return folder / "answers.jsonl"


def _run_trials(
    config: CompareConfig,
    grid: Sequence[Combination],
    arguments: Sequence[str],
    runs: Path,
    observer: StageReporter,
) -> list[TrialRuns]:
    """Every combination once, then every combination again: a slow minute hits all alike."""
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
        "input": config.input,
        "rows": len(sample.requests),
        "rows_in_input": sample.total,
        "skipped": sample.skipped,
        "max_new_tokens": config.max_new_tokens,
        **evaluator.prompt_facts(),
    }
