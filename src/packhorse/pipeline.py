"""The way of a row, on one page: read -> tokenize -> plan -> run -> record -> export.

`run` is what the command `packhorse run` calls. The inner steps are `Answering`'s; around them lie
the journal, which makes a run resumable, and the export, which writes each input row once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from packhorse.config import JobConfig
from packhorse.data import Answer, Failure, Request
from packhorse.errors import InputError, Interrupted
from packhorse.export import OpenAIShape, OutputRow, write_json, write_output
from packhorse.interruption import Interruption
from packhorse.journal import Counts, Journal
from packhorse.manifest import (
    RunReport,
    manifest,
    model_identity,
    plan_line,
    resolved_settings,
)
from packhorse.meters import Meter
from packhorse.models import PreparedModel, resolve_quantization
from packhorse.session import check_batching, check_decoding, load_prepared, prepare_for
from packhorse.sources import detect_format, read_rows
from packhorse.tokenization import Tokenizer
from packhorse.workspace import Workspace


class Observer(Protocol):
    """Is told how a run goes on; a terminal shows it, a test or a library user need not."""

    def stage(self, text: str) -> None: ...
    def begin(self, counts: Counts, meter: Meter) -> None: ...
    def advance(self) -> None: ...
    def end(self) -> None: ...


class Silent:
    """The observer that shows nothing."""

    def stage(self, text: str) -> None:
        """A step begins, or something is worth saying; one line."""

    def begin(self, counts: Counts, meter: Meter) -> None:
        """Rows begin to run; `meter` is live."""

    def advance(self) -> None:
        """One row more is done."""

    def end(self) -> None:
        """No more rows run."""


def run(config: JobConfig, observer: Observer | None = None) -> RunReport:
    """Runs a job, or goes on with it, until every input row has an outcome in the output.

    Raises PackhorseError for a job that cannot be done, before any long work where that can be
    known, and Interrupted after a signal; what was finished is in the journal in either case, and
    calling `run` again with the same config goes on from there.
    """
    observer = observer or Silent()
    meter = Meter()
    workspace = Workspace(config.output)
    _check(config, workspace)
    with (
        workspace.held(),
        Journal(workspace.journal) as journal,
        Interruption(lambda: observer.stage(_STOPPING), journal.commit) as interruption,
    ):
        if journal.is_bound():
            journal.check(settings(config))
        with meter.stage("read"):
            source = _source(config, workspace)
            observer.stage(f"reading {config.input}")
            journal.enlist(read_rows(source, config.reading))
            is_openai = detect_format(source) == "openai-batch"
            journal.set_meta("openai", {"model": config.model} if is_openai else None)
        if config.retry_failed:
            journal.forget_failures()
        with meter.stage("prepare"):
            prepared = prepare_for(
                config.model,
                config.engine,
                allow_pickle=config.allow_pickle,
                report=observer.stage,
            )
        identity = {"model": prepared.fingerprint, "engine": prepared.engine}
        journal.bind({**identity, **settings(config)})
        resolved = None
        if len(journal.pending_positions()):
            resolved = _run_pending(
                config, source, prepared, journal, meter, interruption, observer
            )
        if interruption.signal_number is not None:
            raise Interrupted(interruption.signal_number)
        return _finish(config, workspace, source, journal, prepared, resolved, meter)


def _run_pending(
    config: JobConfig,
    source: Path,
    prepared: PreparedModel,
    journal: Journal,
    meter: Meter,
    interruption: Interruption,
    observer: Observer,
) -> dict[str, Any]:
    """Runs the rows that have no result yet; returns what "auto" became."""
    observer.stage(f"loading {config.model}")
    with meter.stage("load"):
        model = load_prepared(prepared, config.engine, config.batching, observer.stage)
    with model:
        check_decoding(config.decoding, model.traits.max_context)
        budget = model.budget(config.decoding)
        resolved = resolved_settings(config, model, budget)
        observer.stage(plan_line(resolved))
        tokenizer = Tokenizer(model.codec, config.reading.system, config.reading.on_too_long)

        def answers(rows: Iterable[Request], meter: Meter) -> Iterator[Answer | Failure]:
            return model.answering(
                tokenizer, config.decoding, budget, meter, interruption.requested
            ).outcomes(rows)

        if config.warmup_rows:
            with meter.stage("warm up"):
                for _ in answers(_pending(source, config, journal, config.warmup_rows), Meter()):
                    pass
        observer.begin(journal.counts(), meter)
        try:
            with meter.stage("generate"):
                for outcome in answers(_pending(source, config, journal), meter):
                    journal.record(outcome)
                    observer.advance()
        finally:
            journal.commit()
            observer.end()
            journal.add_session({"resolved": resolved, **meter.to_json()})
    return resolved


def _pending(
    source: Path, config: JobConfig, journal: Journal, limit: int | None = None
) -> Iterator[Request]:
    """The rows of the input that have no result, read again from the file."""
    positions = iter(journal.pending_positions()[:limit])
    wanted = next(positions, None)
    for row in read_rows(source, config.reading):
        if wanted is None:
            return
        if row.index == wanted:
            wanted = next(positions, None)
            if isinstance(row, Request):
                yield row


def _finish(
    config: JobConfig,
    workspace: Workspace,
    source: Path,
    journal: Journal,
    prepared: PreparedModel,
    resolved: dict[str, Any] | None,
    meter: Meter,
) -> RunReport:
    """Writes the output and its manifest, each in one step."""
    counts = journal.counts()
    if counts.pending:
        raise InputError(
            f"{counts.pending} rows have no result: the input changed while it was read",
            "run the same command again: only those rows are run",
        )
    with meter.stage("export"):
        written = export_journal(journal, config.output)
    assert written == counts.rows == counts.completed + counts.failed
    session = meter.to_json() if resolved else None
    report = RunReport(
        output=config.output,
        manifest=workspace.manifest,
        counts=counts,
        model=model_identity(prepared),
        resolved=resolved,
        session=session,
    )
    write_json(workspace.manifest, manifest(config, source, journal, report))
    return report


def export_journal(journal: Journal, output: Path) -> int:
    """Writes every row of the journal's input to `output`, in input order; returns their number.

    A row that has not run is an error row with code `pending`.
    """
    openai = journal.meta("openai")
    shape = OpenAIShape(model=openai["model"], created=0) if openai else None
    rows = (
        OutputRow(
            id=record.id,
            text=record.text,
            finish_reason=record.finish_reason,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            error_code=record.error_code or (None if record.finish_reason else "pending"),
            error_message=record.error_message
            or (None if record.finish_reason else "this row has not run yet"),
            line=record.line,
            chat=record.chat,
        )
        for record in journal.records()
    )
    return write_output(output, rows, openai=shape)


def settings(config: JobConfig) -> dict[str, Any]:
    """What decides the results of a job beside its model, flat; a journal is tied to these.

    How rows are batched is not among them: in float32 it changes nothing but speed.
    """
    decoding = asdict(config.decoding)
    return {
        "input": config.input if config.input == "-" else str(Path(config.input).absolute()),
        "quantization": resolve_quantization(config.engine.quantization, config.engine.device),
        "system": config.reading.system,
        "template": config.reading.template,
        "prompt_column": config.reading.prompt_column,
        "on_too_long": config.reading.on_too_long,
        **{name: list(value) if name == "stop" else value for name, value in decoding.items()},
    }


def _check(config: JobConfig, workspace: Workspace) -> None:
    """All that can be refused before anything is read."""
    check_batching(config.batching)
    check_decoding(config.decoding)
    workspace.check(config.input)
    if config.input != "-" and not Path(config.input).exists():
        raise InputError(f"there is no file {config.input}", "name the input file, or - for stdin")


def _source(config: JobConfig, workspace: Workspace) -> Path:
    return workspace.spool_standard_input() if config.input == "-" else Path(config.input)


_STOPPING = "stopping: rows in flight are finished first; press Ctrl-C again to stop at once"
