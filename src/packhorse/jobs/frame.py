"""The frame of every job: read, enlist, bind, run what is pending, export.

A kind of job is a `JobHandler`: a model answers rows (`packhorse run`), a saved classifier labels
them (`packhorse classify`). Input, output, journal, resuming, interruption and errors are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from packhorse.config import InputConfig
from packhorse.data import Request
from packhorse.errors import ConfigError, InputError
from packhorse.inputs import detect_format, read_rows, shown
from packhorse.jobs.journal import Counts, Journal
from packhorse.jobs.manifest import RunReport, manifest
from packhorse.jobs.signals import SignalGuard
from packhorse.jobs.workspace import Workspace
from packhorse.outputs import OpenAIShape, OutputRow, write_json, write_output
from packhorse.profiling.run_metrics import Meter
from packhorse.storage.atomic_files import is_there

Exported = Literal["all", "completed", "failed"]


class ProgressReporter(Protocol):
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


class Job(Protocol):
    """What every kind of job is told about its files; a dataclass, kept in the manifest."""

    @property
    def input(self) -> str: ...
    @property
    def output(self) -> Path: ...
    @property
    def reading(self) -> InputConfig: ...
    @property
    def retry_failed(self) -> bool: ...


class JobHandler(Protocol):
    """What a kind of job does with its rows; `run_job` calls the methods in this order."""

    def settings(self) -> dict[str, Any]:
        """What decides results and is known before anything is read; flat."""
        ...

    def enlisted(self, source: Path, journal: Journal) -> None:
        """The rows are read once and in the journal; may refuse the input."""
        ...

    def prepare(self, report: Callable[[str], None]) -> dict[str, Any]:
        """Makes ready what answers rows, short of loading it; what identifies it, flat."""
        ...

    def run(self, pending: Pending, journal: Journal, hands: JobContext) -> dict[str, Any]:
        """Records an outcome for every pending row; returns what "auto" became."""
        ...

    def identity(self) -> dict[str, Any]:
        """What answered, for the manifest; after `prepare`."""
        ...


class Pending(Protocol):
    """The rows that have no result, read again from the input; `limit` of them at most."""

    def __call__(self, limit: int | None = None) -> Iterator[Request]: ...


@dataclass(frozen=True, slots=True)
class JobContext:
    """What a job works with while it runs: who is told, what is measured, whether to stop.

    loading: to be entered around long work that records no rows; a signal ends it where it is.
    date: the local time that chat templates write, the same whenever the job is resumed.
    """

    observer: ProgressReporter
    meter: Meter
    stopping: Callable[[], bool]
    loading: Callable[[], AbstractContextManager[None]]
    date: datetime


def run_job(job: Job, work: JobHandler, observer: ProgressReporter | None = None) -> RunReport:
    """The frame of every job: read, enlist, bind, run what is pending, export."""
    observer = observer or Silent()
    meter = Meter()
    workspace = Workspace(job.output)
    _check(job, workspace)
    date_of(job.reading.date)
    with (
        workspace.held(),
        Journal(workspace.journal) as journal,
        SignalGuard(lambda: observer.stage(_STOPPING), journal.commit) as interruption,
    ):
        if journal.is_bound():
            journal.check(work.settings())
        with meter.stage("read"):
            with interruption.raising():
                source = _source(job, workspace)
            observer.stage(f"reading {job.input}")
            unit = "row" if detect_format(source) == "parquet" else "line"
            rows = interruption.checked(read_rows(source, job.reading, observer.stage))
            journal.register_rows(rows, unit)
            work.enlisted(source, journal)
            if damaged := journal.discard_damaged():
                observer.stage(f"{damaged:,} results in the journal are damaged and computed again")
        with meter.stage("prepare"), interruption.raising():
            identity = work.prepare(observer.stage)
        bound, date = _dated(journal, job.reading)
        journal.store_settings({**identity, **work.settings(), **bound})
        if job.retry_failed:
            journal.delete_failures()
        resolved = None
        if len(journal.pending_positions()):
            pending = partial(_pending, source, job, journal)
            hands = JobContext(observer, meter, interruption.requested, interruption.raising, date)
            resolved = work.run(pending, journal, hands)
        interruption.check()
        return _finish(job, workspace, source, journal, work, resolved, meter)


def date_of(text: str | None) -> datetime:
    """A date in ISO 8601, with or without a time; now for None. Raises ConfigError."""
    if text is None:
        return datetime.now().replace(microsecond=0)  # noqa: DTZ005 (people read a local date)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"the date {shown(text)} is none", "write it as 2026-01-31 or 2026-01-31T12:00:00"
        ) from None


def _dated(journal: Journal, reading: InputConfig) -> tuple[dict[str, Any], datetime]:
    """The setting that a journal is tied to, and what it means; a journal of a version that kept
    no date is not tied to one."""
    known = journal.meta("settings")
    if reading.date is None and known is not None:
        if "date" not in known:
            return {}, date_of(None)
        return {"date": known["date"]}, date_of(known["date"])
    date = date_of(reading.date)
    return {"date": date.isoformat()}, date


def _pending(
    source: Path, job: Job, journal: Journal, limit: int | None = None
) -> Iterator[Request]:
    """The rows of the input that have no result, read again from the file."""
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
    source: Path,
    journal: Journal,
    work: JobHandler,
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
        written = export_journal(journal, job.output)
    assert written == counts.rows
    session = meter.to_json() if resolved else None
    report = RunReport(
        output=job.output,
        manifest=workspace.manifest,
        counts=counts,
        model=work.identity(),
        resolved=resolved,
        session=session,
    )
    write_json(workspace.manifest, manifest(job, source, journal, report))
    return report


def export_journal(journal: Journal, output: Path, which: Exported = "all") -> int:
    """Writes rows of the journal's input to `output`, in input order; returns their number.

    which: "all" of them, where a row that has not run is an error row with code `pending`, or
    those that "completed" or "failed".
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
            **(record.note or {}),
        )
        for record in journal.records()
        if which == "all" or (record.finish_reason if which == "completed" else record.error_code)
    )
    return write_output(output, rows, openai=shape, labels=bool(journal.meta("labels")))


def input_identity(source: str) -> str:
    """What an input is called in a job's settings, wherever the job is started from."""
    return source if source == "-" else str(Path(source).absolute())


def _check(job: Job, workspace: Workspace) -> None:
    """What of its files can be refused before anything is read."""
    workspace.check(job.input)
    if job.input != "-":
        check_input(job.input)


def check_input(source: str) -> None:
    """InputError where there is no such file, before anything else is made or sought."""
    if not is_there(Path(source)):
        raise InputError(
            f"there is no file {shown(source)}",
            "name the file of the input; a prompt is given in a file, or through - as stdin",
        )


def _source(job: Job, workspace: Workspace) -> Path:
    return workspace.spool_standard_input() if job.input == "-" else Path(job.input)


_STOPPING = "stopping: rows in flight are finished first; press Ctrl-C again to stop at once"
