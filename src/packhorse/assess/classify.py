"""Run `packhorse classify`: label the rows of a file with a saved classifier.

Input, output, journal, resuming and errors are those of `packhorse run`. An output row has a label,
its confidence (none for free text of a language model) and which part decided: "classic" or
"model".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from packhorse.assess.classifiers import Classifier, Decision, open_saved
from packhorse.assess.saved_classifier import CARD, Card, read_card
from packhorse.config import (
    INPUT_OPTION,
    OUTPUT_OPTION,
    RETRY_FAILED_OPTION,
    BatchingConfig,
    InputConfig,
    OutputConfig,
)
from packhorse.data import Completion, Failure, Request, Timing
from packhorse.errors import InputError
from packhorse.inference.model import check_batching
from packhorse.inputs import Source, detect_format, quoting_settings
from packhorse.jobs.frame import JobContext, Pending, ProgressReporter, input_identity, run_job
from packhorse.jobs.journal import Journal
from packhorse.jobs.manifest import RunReport
from packhorse.storage.urls import public_name

_NOT_TEXT = "the row holds messages; a classifier needs text: name its field with --text-column"


@dataclass(frozen=True, slots=True)
class ClassifyConfig:
    """Which classifier labels which rows.

    Attributes:
        saved: folder of a saved classifier.
        input: as in `packhorse.config.JobConfig`, like output, reading, writing and retry_failed;
            without a column, the one of the assessment is used.
        batching: for a language model; window_rows also for a classic one.
    """

    saved: Path = field(metadata={"help": "folder that packhorse assess has saved"})
    input: str = field(metadata=INPUT_OPTION)
    output: Path | str = field(metadata=OUTPUT_OPTION)
    reading: InputConfig = field(default_factory=InputConfig)
    writing: OutputConfig = field(default_factory=OutputConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    retry_failed: bool = field(default=False, metadata=RETRY_FAILED_OPTION)


def classify(config: ClassifyConfig, observer: ProgressReporter | None = None) -> RunReport:
    """Label every row, or continue an earlier run.

    Raises:
        InputError: the folder holds no usable classifier; also everything `packhorse.run` raises.
        ModelError: its language model cannot be used.
    """
    check_batching(config.batching)
    card = read_card(config.saved)
    config = replace(config, reading=replace(config.reading, row_options="no"))
    config = _with_column(config, card)
    return run_job(config, Labelling(config, card), observer)


class Labelling:
    """Job handler of `packhorse classify`."""

    def __init__(self, config: ClassifyConfig, card: Card) -> None:
        self._config = config
        self._card = card
        self._digest = sha256((config.saved / CARD).read_bytes()).hexdigest()

    def settings(self) -> dict[str, Any]:
        reading = self._config.reading
        return {
            "input": input_identity(self._config.input),
            "classifier": self._digest,
            "text_column": reading.prompt_column,
            "template": reading.template,
            "id_column": reading.id_column,
            **quoting_settings(self._config.input, reading),
        }

    def on_rows_registered(self, source: Source, journal: Journal) -> None:
        if detect_format(source) == "openai-batch":
            raise InputError(
                f"{public_name(self._config.input)} holds OpenAI batch lines, not texts to be "
                "labelled",
                "give the texts as CSV, Parquet, JSONL or text",
            )
        journal.set_meta("openai", None)
        journal.set_meta("labels", True)

    def prepare(self, report: Callable[[str], None]) -> dict[str, Any]:
        return {"kind": self._card.kind}

    def identity(self) -> dict[str, Any]:
        card = self._card
        return {
            "name": str(self._config.saved),
            "kind": card.kind,
            "title": card.title,
            "classes": list(card.classes),
            "fingerprint": self._digest,
        }

    def run(self, pending: Pending, journal: Journal, context: JobContext) -> dict[str, Any]:
        config, meter, observer = self._config, context.meter, context.reporter
        observer.stage(f"loading {self._card.title}")
        with meter.stage("load"), context.loading():
            classifier = open_saved(config.saved, config.batching, observer.stage, context.date)
        resolved = {"kind": self._card.kind, "window_rows": config.batching.window_rows}
        observer.begin(journal.counts(), meter)
        try:
            with meter.stage("generate"):
                for request, decision, timing in self._decide(classifier, pending(), context):
                    outcome = _outcome(request, decision, timing)
                    note = {"confidence": decision.confidence, "answered_by": decision.by}
                    journal.record(outcome, note if isinstance(outcome, Completion) else None)
                    meter.count_outcome(outcome)
                    observer.advance()
        finally:
            observer.end()
            classifier.close()
            journal.commit()
            journal.add_session({"resolved": resolved, **meter.to_json()})
        return resolved

    def _decide(
        self, classifier: Classifier, requests: Iterable[Request], context: JobContext
    ) -> Iterator[tuple[Request, Decision, Timing]]:
        """Yield every request with its decision, one window at a time, in order of completion."""
        remaining = iter(requests)
        while window := list(islice(remaining, self._config.batching.window_rows)):
            if context.stopping():
                return
            submitted = time.monotonic()
            texts = [row for row in window if isinstance(row.content, str)]
            for row in window:
                if not isinstance(row.content, str):
                    decision = Decision(None, None, "classic", "not_text", _NOT_TEXT)
                    yield row, decision, Timing(submitted, submitted)
            contents = [str(row.content) for row in texts]
            for index, decision in classifier.decide(contents, context.stopping):
                yield texts[index], decision, Timing(submitted, time.monotonic())


def _outcome(request: Request, decision: Decision, timing: Timing) -> Completion | Failure:
    if decision.label is None:
        return Failure(
            request.index, decision.code, decision.message, request.id, request.line, request.key
        )
    return Completion(
        index=request.index,
        id=request.id,
        key=request.key,
        text=decision.label,
        token_ids=(),
        finish_reason="stop",
        prompt_tokens=0,
        timing=timing,
    )


def _with_column(config: ClassifyConfig, card: Card) -> ClassifyConfig:
    """Use the text column of the assessment if none was given and the input has columns.

    Columns are kept by default only if the text's was given.
    """
    reading = config.reading
    named = reading.prompt_column is not None or reading.template is not None
    has_columns = (
        Path(public_name(config.input)).suffix.lower() not in (".txt", "") and config.input != "-"
    )
    if named or not has_columns or not card.text_column:
        return config
    writing = config.writing
    if writing.keep == "auto":
        writing = replace(writing, keep="none")
    reading = replace(reading, prompt_column=card.text_column)
    return replace(config, reading=reading, writing=writing)
