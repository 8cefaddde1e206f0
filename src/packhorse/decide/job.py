"""Run `packhorse decide`: answer typed questions about every row of a file.

Input, output, journal, resuming and errors are those of `packhorse run`. Priors and temperatures
are measured once and kept in the journal, so that a job that is continued uses the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from packhorse.config import (
    ALLOW_PICKLE_OPTION,
    INPUT_OPTION,
    MODEL_OPTION,
    OUTPUT_OPTION,
    RETRY_FAILED_OPTION,
    BatchingConfig,
    EngineConfig,
    InputConfig,
    OutputConfig,
)
from packhorse.data import Completion, Failure, Request, SamplingParams, Timing
from packhorse.decide.answers import Asker, Calibration, RowAnswers
from packhorse.decide.questions import Question, read_questions
from packhorse.errors import ConfigError, InputError
from packhorse.evaluation.label_matching import normalise
from packhorse.evaluation.probabilities import (
    Floats,
    Ints,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    with_temperature,
)
from packhorse.inference.model import (
    Model,
    check_batching,
    check_engine,
    check_least,
    load_prepared,
    prepare_for,
)
from packhorse.inputs import Source, detect_format, quoting_settings, read_fields, read_rows
from packhorse.jobs.frame import JobContext, Pending, ProgressReporter, input_identity, run_job
from packhorse.jobs.journal import Journal
from packhorse.jobs.manifest import RunReport, model_identity, plan_line, resolved_settings
from packhorse.models import PreparedModel, resolve_quantization
from packhorse.tokenization import SpecialTextNotice, Tokenizer

LEAST_LABELS = 10
"""Labelled rows of a question from which on a temperature is fitted."""
FOLDS = 5
"""Parts of the labelled rows: each is judged with the temperature of the others."""
_ENTRY = "decide"


@dataclass(frozen=True, slots=True)
class DecideConfig:
    """Which questions are asked about which rows.

    Attributes:
        model, input, output, engine, batching, reading, writing, retry_failed, allow_pickle: As in
            `packhorse.config.JobConfig`.
        questions: File of the questions; see `read_questions`.
        labels: File of rows with the right answers, in columns with the names of the questions, for
            temperatures and figures.
        permutations: Most orders in which the options of a question are listed.
        divide_prior: Divide out what the model answers without a row.
    """

    model: str = field(metadata=MODEL_OPTION)
    input: str = field(metadata=INPUT_OPTION)
    output: Path = field(metadata=OUTPUT_OPTION)
    questions: Path = field(
        metadata={
            "flags": ("--questions",),
            "help": "file of questions: a JSON list, or one JSON object per line",
        }
    )
    labels: Path | None = field(
        default=None,
        metadata={
            "flags": ("--labelled",),
            "metavar": "FILE",
            "help": "file of rows with right answers, in columns named as the questions: fits a "
            "temperature per question and reports accuracy, Brier score and calibration error",
            "default": "none",
        },
    )
    permutations: int = field(
        default=4, metadata={"help": "list the options of a question in at most N orders"}
    )
    divide_prior: bool = field(
        default=True, metadata={"help": "keep what the model prefers whatever the row says"}
    )
    engine: EngineConfig = field(default_factory=EngineConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    reading: InputConfig = field(default_factory=InputConfig)
    writing: OutputConfig = field(default_factory=OutputConfig)
    retry_failed: bool = field(default=False, metadata=RETRY_FAILED_OPTION)
    allow_pickle: bool = field(default=False, metadata=ALLOW_PICKLE_OPTION)


def decide(config: DecideConfig, reporter: ProgressReporter | None = None) -> RunReport:
    """Answer the questions about every row, or continue an earlier run.

    Raises:
        ConfigError: A question is not valid; also everything that `packhorse.run` raises.
    """
    check_engine(config.engine)
    check_batching(config.batching)
    check_least({"permutations": config.permutations}, 1)
    config = replace(config, reading=replace(config.reading, row_options="no"))
    return run_job(config, Deciding(config, read_questions(config.questions)), reporter)


class Deciding:
    """Job handler of `packhorse decide`."""

    def __init__(self, config: DecideConfig, questions: Sequence[Question]) -> None:
        self._config, self._questions = config, questions
        self._prepared: PreparedModel | None = None

    def settings(self) -> dict[str, Any]:
        config = self._config
        engine, reading = config.engine, config.reading
        asked = [[each.name, each.kind, each.text, each.options] for each in self._questions]
        return {
            "input": input_identity(config.input),
            "questions": sha256(json.dumps(asked).encode()).hexdigest(),
            "labels": None if config.labels is None else _digest(config.labels),
            "permutations": config.permutations,
            "divide_prior": config.divide_prior,
            "system": reading.system,
            "template": reading.template,
            "prompt_column": reading.prompt_column,
            "id_column": reading.id_column,
            "quantization": resolve_quantization(engine.quantization, engine.device, engine.engine),
            **quoting_settings(config.input, reading),
        }

    def on_rows_registered(self, source: Source, journal: Journal) -> None:
        if detect_format(source) == "openai-batch":
            raise InputError(
                f"{self._config.input} holds OpenAI batch lines, not rows to ask about",
                "give the rows as JSONL, CSV, Parquet or text",
            )
        journal.set_meta("openai", None)
        journal.set_meta("are_values", True)
        columns: dict[str, str] = {}
        for question in self._questions:
            columns |= question.columns()
        journal.set_meta("properties", columns)

    def prepare(self, report: Callable[[str], None]) -> dict[str, Any]:
        config = self._config
        self._prepared = prepare_for(
            config.model,
            config.engine,
            policy=config.batching.policy,
            allow_pickle=config.allow_pickle,
            report=report,
        )
        return {"model": self._prepared.fingerprint, "engine": self._prepared.engine}

    def identity(self) -> dict[str, Any]:
        assert self._prepared is not None
        return model_identity(self._prepared)

    def run(self, pending: Pending, journal: Journal, context: JobContext) -> dict[str, Any]:
        assert self._prepared is not None
        config, meter, reporter = self._config, context.meter, context.reporter
        codec = self._prepared.codec()
        tokenizer = Tokenizer(
            codec, config.reading.system, "error", context.date, SpecialTextNotice(reporter.stage)
        )
        reporter.stage(f"loading {config.model}")
        with meter.stage("load"), context.loading():
            model = load_prepared(
                self._prepared, config.engine, config.batching, reporter.stage, codec=codec
            )
        with model:
            budget = model.budget(SamplingParams(max_new_tokens=1))
            resolved = resolved_settings(config.batching, model, budget)
            reporter.stage(plan_line(resolved))
            asker = self._asker(model, tokenizer)
            with meter.stage("calibrate"), context.loading():
                entry = journal.meta(_ENTRY) or self._calibrate(asker, reporter.stage)
            journal.set_meta(_ENTRY, entry)
            calibration = Calibration(entry["priors"], entry["temperatures"])
            resolved["questions"] = entry["report"]
            reporter.begin(journal.counts(), meter)
            try:
                with meter.stage("generate"):
                    remaining = pending()
                    while window := list(islice(remaining, asker.rows_at_once)):
                        for row, answers, timing in asker.answers(window, context.stopping):
                            outcome = self._outcome(row, answers, timing, calibration)
                            is_answer = isinstance(outcome, Completion)
                            journal.record(outcome, {"is_json": True} if is_answer else None)
                            meter.count_outcome(outcome)
                            reporter.advance()
                        if context.stopping():
                            break
            finally:
                reporter.end()
                journal.commit()
                journal.add_session({"resolved": resolved, **meter.to_json()})
        return resolved

    def _asker(self, model: Model, tokenizer: Tokenizer) -> Asker:
        config = self._config
        return Asker(
            model, tokenizer, self._questions, config.permutations, config.batching.window_rows
        )

    def _outcome(
        self, row: Request, answers: RowAnswers | Failure, timing: Timing, calibration: Calibration
    ) -> Completion | Failure:
        if isinstance(answers, Failure):
            return answers
        values: dict[str, Any] = {}
        for question in self._questions:
            probabilities = calibration.apply(question, answers[question.name])
            values |= question.values(probabilities.tolist())
        return Completion(
            index=row.index,
            id=row.id,
            key=row.key,
            text=json.dumps(values, ensure_ascii=False),
            token_ids=(),
            finish_reason="stop",
            prompt_tokens=0,
            timing=timing,
        )

    def _calibrate(self, asker: Asker, report: Callable[[str], None]) -> dict[str, Any]:
        """Return priors, temperatures, and what the report says of each question."""
        config = self._config
        priors = asker.priors() if config.divide_prior else {}
        entry: dict[str, Any] = {"priors": priors, "temperatures": {}, "report": []}
        calibration = Calibration(priors)
        labelled: dict[str, tuple[Floats, Ints]] = {}
        if config.labels is not None:
            report(f"answering the labelled rows of {config.labels}")
            labelled = self._labelled(asker, calibration, config.labels)
        for question in self._questions:
            figures: dict[str, Any] = {"name": question.name, "options": list(question.options)}
            if question.name in priors:
                figures["prior"] = np.mean(priors[question.name], axis=0).round(6).tolist()
            if question.name in labelled:
                probabilities, truth = labelled[question.name]
                figures |= _figures(probabilities, truth)
                if len(truth) >= LEAST_LABELS:
                    entry["temperatures"][question.name] = fit_temperature(probabilities, truth)
                    figures["temperature"] = round(entry["temperatures"][question.name], 4)
                else:
                    report(
                        f"{question.name}: {len(truth)} labelled rows are too few for a "
                        f"temperature, {LEAST_LABELS} are needed"
                    )
            entry["report"].append(figures)
        return entry

    def _labelled(
        self, asker: Asker, calibration: Calibration, path: Path
    ) -> dict[str, tuple[Floats, Ints]]:
        """Return the probabilities [rows, options] and right options of the labelled rows.

        Raises:
            InputError: The file cannot be read or has no column of a question's name.
            ConfigError: A label is no option of its question.
        """
        reading = replace(self._config.reading, limit=None, id_column=None)
        names = [question.name for question in self._questions]
        rows = list(read_rows(path, reading))
        fields = read_fields(path, names, reading.csv_quoting)
        labels = [row.values for row in fields]
        right = {question.name: _places(question, labels, path) for question in self._questions}
        usable = [row for row in rows if isinstance(row, Request)]
        found: dict[str, tuple[list[Floats], list[int]]] = {name: ([], []) for name in names}
        for row, answers, _ in asker.answers(usable):
            if isinstance(answers, Failure):
                continue
            for question in self._questions:
                place = right[question.name][row.index]
                if place is not None:
                    probabilities, truth = found[question.name]
                    probabilities.append(calibration.apply(question, answers[question.name]))
                    truth.append(place)
        return {
            name: (np.array(probabilities), np.array(truth, np.int64))
            for name, (probabilities, truth) in found.items()
            if truth
        }


def _digest(path: Path) -> str:
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"the labels {path} cannot be read: {error}", "name a file") from error


def _places(
    question: Question, labels: Sequence[Mapping[str, str]], path: Path
) -> list[int | None]:
    """Return the right option of each row, None for a row without a label."""
    places = {normalise(option): place for place, option in enumerate(question.options)}
    if question.kind == "yes_no":
        places |= {"true": 0, "1": 0, "false": 1, "0": 1}
    found: list[int | None] = []
    for number, row in enumerate(labels, 1):
        label = row.get(question.name, "").strip()
        place = places.get(normalise(label)) if label else None
        if label and place is None:
            raise ConfigError(
                f"row {number} of {path} has the label {label!r} for {question.name}, which is "
                f"none of {', '.join(question.options)}",
                "write labels as the options of the question",
            )
        found.append(place)
    return found


def _figures(probabilities: Floats, truth: Ints) -> dict[str, Any]:
    """Return accuracy, Brier score and calibration error, before and after a temperature.

    Those after it are of each fold of the rows with the temperature of the other folds.
    """
    after = probabilities.copy()
    if len(truth) >= LEAST_LABELS:
        folds = np.arange(len(truth)) % FOLDS
        for fold in range(FOLDS):
            kept = folds != fold
            temperature = fit_temperature(probabilities[kept], truth[kept])
            after[~kept] = with_temperature(probabilities[~kept], temperature)
    found: dict[str, Any] = {"labelled_rows": len(truth)}
    right = probabilities.argmax(axis=1) == truth
    found["accuracy"] = round(float(right.mean()), 6)
    for name, values in (("before", probabilities), ("after", after)):
        found[f"brier_{name}"] = round(brier_score(values, truth), 6)
        error = expected_calibration_error(values.max(axis=1), right)
        found[f"calibration_error_{name}"] = round(error, 6)
    return found
