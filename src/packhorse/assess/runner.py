"""Run `packhorse assess`: read, split, hold the contest, evaluate, save, report."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from packhorse.assess.classic_contest import Classic, prepare_features, run_classic_contestants
from packhorse.assess.config import DEFAULT_EMBEDDINGS, AssessConfig
from packhorse.assess.contestants import ContestantResult
from packhorse.assess.costs import Costs, measure_costs
from packhorse.assess.document import Assessment
from packhorse.assess.duplicates import remove_duplicates
from packhorse.assess.evaluate import ContestResults, evaluate
from packhorse.assess.model_contest import ModelResults, run_model_contestants
from packhorse.assess.profile import Profile, make_profile
from packhorse.assess.report import write_reports
from packhorse.assess.rows import drop_rare_labels, read_labelled
from packhorse.assess.saved_classifier import CARD
from packhorse.assess.saving import save_contestant, save_winner
from packhorse.assess.splits import Fold, Split, make_folds, split
from packhorse.assess.verdict import Verdict
from packhorse.embeddings import read_layout
from packhorse.errors import ConfigError, OutputError, PackhorseError
from packhorse.inference.model import load
from packhorse.jobs.manifest import versions
from packhorse.models import prepare_embedding_model
from packhorse.profiling.hardware import machine
from packhorse.reports.progress import StageReporter
from packhorse.storage.atomic_files import is_there, make_folder

WINNER = "winner"


def assess(config: AssessConfig, observer: StageReporter) -> Assessment:
    """Compare the classifiers and write reports and winner to `config.output`.

    Raises:
        ConfigError: options out of range.
        InputError: unusable rows.
        ModelError: a model that is unavailable; an explicitly named sentence model is checked
            before the language model runs.
        EngineError: an engine that cannot run the model or cannot score labels.
        OutputError: a folder that cannot be written.
    """
    _check(config)
    started = time.monotonic()
    parts, cut, described = _rows(config, observer)
    if config.embeddings not in (None, DEFAULT_EMBEDDINGS):
        read_layout(prepare_embedding_model(config.embeddings, observer.stage))
    with _new_folder(config.output):
        side, ran, model_bytes = _ask_model(config, parts, observer)
    notes = list(side.notes)
    classic = prepare_classic_data(config, parts, cut, observer, notes)
    entries = (*run_classic_contestants(classic, parts.train, observer.stage), *side.entries)
    outcome = ContestResults(parts, classic, side, entries, config.seed)
    work = Path(mkdtemp(prefix=".contestants-", dir=config.output))
    try:
        costs = _costs(config, outcome, work, model_bytes, observer)
        observer.stage("computing learning curves and verdict")
        found = evaluate(config, outcome, costs)
        saved = _saved(config, outcome, found, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    assessment = Assessment(
        command=config.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=config.model,
        ran=ran,
        machine=machine(),
        versions=versions(),
        settings=_settings(config),
        profile=described,
        prompt=_prompt(side),
        model_rows=len(side.test),
        validation_rows=len(side.validation),
        saved=str(saved or ""),
        classify=_classify_command(config, saved),
        notes=tuple(notes),
        seconds=time.monotonic() - started,
        **found,
    )
    write_reports(assessment, config.output)
    return assessment


def _check(config: AssessConfig) -> None:
    """Raise ConfigError for a number out of range."""
    checks = [
        ("margin", 0 < config.margin < 1, "above 0 and below 1: 0.01 is one percentage point"),
        ("max_p95", config.max_p95 is None or config.max_p95 > 0, "above 0 seconds"),
        ("volume", config.volume is None or config.volume > 0, "above 0 rows a month"),
        ("price_core_hour", (config.price_core_hour or 0) >= 0, "0 or more"),
        ("price_label", (config.price_label or 0) >= 0, "0 or more"),
        ("model_rows", config.model_rows is None or config.model_rows >= 1, "at least 1"),
        ("max_minutes", config.max_minutes > 0, "above 0"),
        ("shots", config.shots >= 0, "0 or more"),
        ("max_text_tokens", config.max_text_tokens >= 1, "at least 1"),
        ("max_rows", config.max_rows >= 1, "at least 1"),
    ]
    for name, is_right, wanted in checks:
        if not is_right:
            raise ConfigError(f"{name} is {getattr(config, name)}", f"it must be {wanted}")
    winner = config.output / WINNER
    if is_there(winner) and not (winner / CARD).exists():
        raise OutputError(
            f"{winner} exists and holds no saved classifier", "choose another folder with -o"
        )
    if config.text_column == config.label_column:
        raise ConfigError(
            f"text and label are both in {config.text_column!r}",
            "name them with --text-column and --label-column",
        )


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Create the folder; remove it if the work fails and leaves it empty."""
    is_new = not is_there(folder)
    make_folder(folder)
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise


def _rows(config: AssessConfig, observer: StageReporter) -> tuple[Split, list[Fold], Profile]:
    """Read, split and fold the rows: their errors are reported before a model is loaded."""
    observer.stage(f"reading {config.labelled}")
    labelled = read_labelled(config, observer.stage)
    single = remove_duplicates(labelled.rows)
    rows, rare = drop_rare_labels(single.rows)
    grouped = config.group_column is not None
    parts = split(rows, grouped=grouped, seed=config.seed)
    cut = make_folds(parts.train, grouped=grouped, seed=config.seed)
    described = make_profile(labelled, single, rare, parts, grouped=grouped)
    observer.stage(
        f"{len(parts.train):,} training and {len(parts.test):,} test rows of "
        f"{len(described.classes)} labels; {single.exact + single.near:,} duplicates removed"
    )
    return parts, cut, described


def _ask_model(
    config: AssessConfig, parts: Split, observer: StageReporter
) -> tuple[ModelResults, dict[str, Any], int]:
    """Return the model's results, the settings it ran with, and the bytes of its files."""
    with load(
        config.model,
        engine=config.engine,
        batching=config.batching,
        allow_pickle=config.allow_pickle,
        report=observer.stage,
    ) as model:
        model.date = model.now()  # one for all passes
        capabilities = model.capabilities
        ran = {
            "engine": capabilities.name,
            "compute_type": capabilities.compute_type,
            "device": capabilities.device,
            "workers x threads": f"{capabilities.workers} x {capabilities.threads}",
            "batching": model.batching.policy,
        }
        return (
            run_model_contestants(model, config, parts, observer.stage),
            ran,
            model.prepared.bytes_on_disk,
        )


def prepare_classic_data(
    config: AssessConfig,
    parts: Split,
    cut: list[Fold],
    observer: StageReporter,
    notes: list[str],
) -> Classic:
    """Compute the classic contestants' features.

    Default embeddings that are unavailable are left out; embeddings named by the user raise
    ModelError.
    """
    try:
        return prepare_features(parts, cut, config.embeddings, observer.stage)
    except PackhorseError as error:
        if config.embeddings != DEFAULT_EMBEDDINGS:
            raise
        notes.append(f"Sentence embeddings were not used: {error}.")
        return prepare_features(parts, cut, None, observer.stage)


def _costs(
    config: AssessConfig,
    outcome: ContestResults,
    work: Path,
    model_bytes: int,
    observer: StageReporter,
) -> dict[str, Costs]:
    """Save every contestant that reads its rows and measure it in a separate process."""
    found = {}
    for entry in outcome.entries:
        if entry.kind == "dummy":
            continue
        observer.stage(f"measuring the cost of {entry.title}")
        save_contestant(entry, work / entry.name, outcome.classes, config)
        texts = [outcome.parts.test[index].text for index in entry.indices]
        further = model_bytes if entry.kind == "model" else _embedding_bytes(config, entry)
        found[entry.name] = measure_costs(work / entry.name, texts, entry.spent, further)
    return found


def _embedding_bytes(config: AssessConfig, entry: ContestantResult) -> int:
    if entry.tuned is None or entry.tuned.family.sees != "embeddings" or not config.embeddings:
        return 0
    folder = prepare_embedding_model(config.embeddings)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _saved(
    config: AssessConfig, outcome: ContestResults, found: dict[str, Any], work: Path
) -> Path | None:
    """Save the winner and return its folder.

    If there are too few rows for a verdict, the classic finalist is saved, provided that it beats
    the most frequent label.
    """
    verdict: Verdict = found["verdict"]
    name = verdict.winner
    if verdict.kind == "too-small-to-say" and found["classic_gain"].is_superior:
        name = outcome.classic.name
    if not name:
        return None
    facts = {
        "reason": verdict.reason,
        "training_rows": len(outcome.parts.train),
        "labels": list(outcome.classes),
        "versions": versions(),
    }
    save_winner(verdict, name, work, config.output / WINNER, found["cascade"], facts)
    return config.output / WINNER


def _classify_command(config: AssessConfig, saved: Path | None) -> str:
    if saved is None:
        return ""
    suffix = Path(config.labelled).suffix
    return shlex.join(["packhorse", "classify", str(saved), f"INPUT{suffix}", "-o", "labels.jsonl"])


def _settings(config: AssessConfig) -> dict[str, Any]:
    """Return the requested settings as plain values."""
    asked = asdict(config)
    left_out = ("engine", "batching", "command", "output", "labelled", "label_names")
    return {
        name: value for name, value in asked.items() if value is not None and name not in left_out
    } | {"labelled": Path(config.labelled).name}


def _prompt(side: ModelResults) -> dict[str, Any]:
    """Return the longest prompt of all variants."""
    parts = [entry.part.prompting for entry in side.entries if entry.part is not None]
    longest = max(parts, key=lambda part: len(part.examples))
    return {
        "instruction": longest.whole_instruction,
        "examples": [list(example) for example in longest.examples],
        "names": dict(longest.names),
    }
