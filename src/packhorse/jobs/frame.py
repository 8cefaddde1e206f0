"""The steps of every job: read, register rows, store settings, run pending rows, export.

A kind of job is a `JobHandler`: a model answers rows (`packhorse run`), a saved classifier labels
them (`packhorse classify`). Input, output, journal, resuming, interruption and errors are the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from packhorse.config import InputConfig, OutputConfig
from packhorse.data import Request
from packhorse.errors import ConfigError, InputError
from packhorse.inputs import (
    InputFiles,
    Source,
    detect_format,
    files_of,
    find_files,
    format_value,
    read_rows,
)
from packhorse.jobs.columns import NAME, ChosenColumns, stored_columns
from packhorse.jobs.journal import Counts, Journal
from packhorse.jobs.manifest import RunReport, manifest
from packhorse.jobs.signals import SignalGuard
from packhorse.jobs.streamed_rows import StreamedRows, row_of
from packhorse.jobs.workspace import Workspace
from packhorse.outputs import (
    OpenAIOutput,
    check_output_column,
    write_json,
    write_output,
)
from packhorse.profiling.run_metrics import Meter
from packhorse.storage.remote_files import check_url, copy_of, download, named_by_url
from packhorse.storage.urls import is_url, public_name

Exported = Literal["all", "completed", "failed"]


class ProgressReporter(Protocol):
    """Receives the progress of a job; a terminal shows it."""

    def stage(self, text: str) -> None: ...
    def begin(self, counts: Counts, meter: Meter) -> None: ...
    def advance(self) -> None: ...
    def end(self) -> None: ...


class Silent:
    """The progress reporter that shows nothing."""

    def stage(self, text: str) -> None:
        """Report the start of a step, or a notice, in one line."""

    def begin(self, counts: Counts, meter: Meter) -> None:
        """Report that rows start to run; `meter` is updated while they do."""

    def advance(self) -> None:
        """Report that one more row is done."""

    def end(self) -> None:
        """Report that no more rows run."""


class Job(Protocol):
    """The config of a kind of job, a dataclass that is stored in the manifest."""

    @property
    def input(self) -> str: ...
    @property
    def output(self) -> Path | str: ...
    @property
    def reading(self) -> InputConfig: ...
    @property
    def writing(self) -> OutputConfig: ...
    @property
    def retry_failed(self) -> bool: ...


class JobHandler(Protocol):
    """What a kind of job does with its rows; `run_job` calls the methods in this order."""

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine results and are known before reading; flat."""
        ...

    def on_rows_registered(self, source: Source, journal: Journal) -> None:
        """Check the input once its rows are in the journal; may raise PackhorseError."""
        ...

    def prepare(self, report: Callable[[str], None]) -> dict[str, Any]:
        """Prepare what answers rows without loading it, and return what identifies it; flat."""
        ...

    def run(self, pending: Pending, journal: Journal, context: JobContext) -> dict[str, Any]:
        """Record an outcome for every pending row and return what "auto" was resolved to."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what answers the rows, for the manifest; called after `prepare`."""
        ...


class Pending(Protocol):
    """Reads the rows without a result from the input, at most `limit` of them."""

    def __call__(self, limit: int | None = None) -> Iterator[Request]: ...


@dataclass(frozen=True, slots=True)
class JobContext:
    """Services passed to a running job: progress reporter, metrics, cancellation check.

    Attributes:
        stopping: Whether the job is asked to stop.
        loading: Context manager for long steps that record no results; a signal inside it aborts
            immediately.
        date: The local time that chat templates write, the same whenever the job is resumed.
    """

    reporter: ProgressReporter
    meter: Meter
    stopping: Callable[[], bool]
    loading: Callable[[], AbstractContextManager[None]]
    date: datetime


def run_job(job: Job, handler: JobHandler, reporter: ProgressReporter | None = None) -> RunReport:
    """Run or resume a job until every input row has an outcome in the output.

    Raises:
        PackhorseError: The job cannot be done; finished rows are in the journal.
        Interrupted: A signal ended the job; finished rows are in the journal.
    """
    reporter = reporter or Silent()
    meter = Meter()
    is_streamed = str(job.output) == "-"
    settings = json.dumps([input_names(job), handler.settings()], default=str)
    workspace = Workspace.streamed(settings) if is_streamed else Workspace.of(job.output)
    report = _run_job(job, handler, reporter, meter, workspace)
    if is_streamed:
        workspace.remove()
    return report


def _run_job(
    job: Job, handler: JobHandler, reporter: ProgressReporter, meter: Meter, workspace: Workspace
) -> RunReport:
    _check(job, workspace, reporter.stage)
    date_of(job.reading.date)
    with (
        workspace.held(),
        Journal(workspace.journal) as journal,
        SignalGuard(lambda: reporter.stage(_STOPPING), journal.commit) as interruption,
        _named(job, workspace),
    ):
        journal.check(handler.settings())
        with meter.stage("read"):
            with interruption.raising():
                source = _source(job, workspace, reporter.stage)
            several = isinstance(source, InputFiles)
            reporter.stage(f"reading {source if several else public_name(job.input)}")
            columns = ChosenColumns(
                source, _names(job, source), job.reading, job.writing, reporter.stage
            )
            unit = "row" if detect_format(source) == "parquet" else "line"
            rows = interruption.checked(read_rows(source, job.reading, reporter.stage))
            journal.register_rows(rows, unit)
            with interruption.raising():
                entry = columns.entry()
            journal.set_meta(NAME, entry)
            handler.on_rows_registered(source, journal)
            if damaged := journal.discard_damaged():
                reporter.stage(
                    f"{damaged:,} results in the journal are damaged; computing them again"
                )
        with meter.stage("prepare"), interruption.raising():
            identity = handler.prepare(reporter.stage)
        dated, date = _date_setting(journal, job.reading)
        journal.store_settings({**identity, **handler.settings(), **dated})
        if job.retry_failed:
            journal.delete_failures()
        resolved = streamed = None
        if workspace.is_streamed:
            is_ordered = getattr(job, "ordered", False)
            streamed = StreamedRows(sys.stdout.buffer, journal, is_ordered=is_ordered)
            streamed.begin()
            journal.on_record = streamed.row_finished
        if len(journal.pending_positions()):
            pending = partial(_pending, source, job, journal)
            context = JobContext(
                reporter, meter, interruption.requested, interruption.raising, date
            )
            resolved = handler.run(pending, journal, context)
        interruption.check()
        report = _finish(job, workspace, source, journal, handler, resolved, meter, streamed)
        with interruption.raising():
            workspace.upload(reporter.stage)
        return report


def date_of(text: str | None) -> datetime:
    """Return a date in ISO 8601, with or without a time; now for None. Raises ConfigError."""
    if text is None:
        return datetime.now().replace(microsecond=0)  # noqa: DTZ005 (people read a local date)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"date must be in ISO 8601, got {format_value(text)}",
            "write it as 2026-01-31 or 2026-01-31T12:00:00",
        ) from None


def _date_setting(journal: Journal, reading: InputConfig) -> tuple[dict[str, Any], datetime]:
    """Return the date as a setting of the journal, and as a time.

    A journal of a version that stored no date has none among its settings.
    """
    known = journal.binding_settings()
    if reading.date is None and known is not None:
        if "date" not in known:
            return {}, date_of(None)
        return {"date": known["date"]}, date_of(known["date"])
    date = date_of(reading.date)
    return {"date": date.isoformat()}, date


def _pending(
    source: Source, job: Job, journal: Journal, limit: int | None = None
) -> Iterator[Request]:
    """Yield the rows of the input that have no result, read from the file again."""
    positions = iter(journal.pending_positions()[:limit])
    wanted = next(positions, None)
    for row in read_rows(source, job.reading):
        if wanted is None:
            return
        if row.index == wanted:
            wanted = next(positions, None)
            if isinstance(row, Request):
                yield row


def _finish(
    job: Job,
    workspace: Workspace,
    source: Source,
    journal: Journal,
    handler: JobHandler,
    resolved: dict[str, Any] | None,
    meter: Meter,
    streamed: StreamedRows | None,
) -> RunReport:
    """Write the output and its manifest, each atomically."""
    counts = journal.counts()
    if counts.pending:
        raise InputError(
            f"{counts.pending} rows have no result: the input changed while it was read",
            "run the same command again: only those rows are run",
        )
    if streamed is None:
        with meter.stage("export"):
            written = export_journal(journal, workspace.output)
    else:
        written = streamed.num_written
    assert written == counts.rows
    session = meter.to_json() if resolved else None
    report = RunReport(
        output=workspace.output,
        manifest=workspace.manifest,
        url=None if workspace.url is None else public_name(workspace.url),
        is_streamed=workspace.is_streamed,
        counts=counts,
        model=handler.identity(),
        resolved=resolved,
        session=session,
    )
    if streamed is None:
        write_json(workspace.manifest, manifest(job, source, journal, report))
    return report


def export_journal(
    journal: Journal,
    output: Path,
    which: Exported = "all",
    writing: OutputConfig | None = None,
) -> int:
    """Write rows of the journal to `output`, in input order, and return their number.

    Args:
        journal: The journal of a job.
        output: A .jsonl, .csv or .parquet file.
        which: "all" rows, of which those that have not run are error rows with code `pending`, or
            only those that "completed" or "failed", then without columns of the input.
        writing: Columns to keep in place of those of the job.

    Raises:
        InputError: The input, whose columns are kept, has changed.
    """
    kept, output_column = stored_columns(journal, writing)
    openai = journal.meta("openai")
    shape = OpenAIOutput(model=openai["model"], created=0) if openai else None
    rows = (
        row_of(record)
        for record in journal.records()
        if which == "all" or (record.finish_reason if which == "completed" else record.error_code)
    )
    return write_output(
        output,
        rows,
        openai=shape,
        labels=bool(journal.meta("labels")),
        extra_columns=journal.columns,
        properties=journal.meta("properties"),
        are_values=bool(journal.meta("are_values")),
        kept=kept if which == "all" else None,
        output_column=output_column,
    )


def input_identity(source: str) -> str:
    """Return the name of an input in a job's settings, independent of the working directory."""
    return public_name(source) if source == "-" or is_url(source) else str(Path(source).absolute())


def _check(job: Job, workspace: Workspace, report: Callable[[str], None]) -> None:
    """Check the job's files and columns before anything is read."""
    check_output_column(job.writing.output_column)
    names = input_names(job)
    alone = [name for name in names if name == "-" or is_url(name)]
    if alone and len(names) > 1:
        what = "standard input" if alone[0] == "-" else f"the URL {public_name(alone[0])}"
        raise ConfigError(
            f"{what} is one of several inputs", "name files, folders or patterns, or this alone"
        )
    if alone:
        workspace.check(job.input)
        if is_url(job.input):
            check_url(job.input)
    else:
        for path in files_of(find_files(names)):
            workspace.check(str(path))
    workspace.check_target(report)


def input_names(job: Job) -> list[str]:
    """Return the inputs of a job as they were named."""
    return [job.input, *getattr(job, "more_inputs", ())]


def _source(job: Job, workspace: Workspace, report: Callable[[str], None]) -> Source:
    if is_url(job.input):
        return download(job.input, workspace.downloads, report)
    return workspace.spool_standard_input() if job.input == "-" else find_files(input_names(job))


def _names(job: Job, source: Source) -> list[str]:
    """Return the files of a source as the journal names them."""
    if job.input == "-" or is_url(job.input):
        return [input_identity(job.input)]
    return [str(path.absolute()) for path in files_of(source)]


def _named(job: Job, workspace: Workspace) -> AbstractContextManager[None]:
    """Let errors name the URL of a remote input."""
    if not is_url(job.input):
        return nullcontext()
    return named_by_url(copy_of(job.input, workspace.downloads), job.input)


_STOPPING = "stopping: finishing rows in flight; press Ctrl-C again to stop at once"
