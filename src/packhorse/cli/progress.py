"""Progress of a job: a live bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO

from packhorse.jobs.frame import ProgressReporter
from packhorse.jobs.journal import Counts
from packhorse.profiling.run_metrics import Meter, current_memory_bytes

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

REFRESH_SECONDS = 0.2


def reporter_for(stream: TextIO) -> ProgressReporter:
    """Return a live display for a terminal, plain lines for any other stream."""
    return LiveReporter(stream) if stream.isatty() else PlainReporter(stream)


class PlainReporter:
    """One line per stage, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def stage(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def begin(self, counts: Counts, meter: Meter) -> None:
        if counts.unreadable:
            self.stage(f"{counts.unreadable:,} of {counts.rows:,} rows cannot be read")
        if done := counts.completed + counts.failed - counts.unreadable:
            self.stage(f"{done:,} of {counts.rows:,} rows are done already")

    def advance(self) -> None:
        """Print nothing: a line per row is too much for a log."""

    def end(self) -> None:
        """Print nothing: the summary follows."""


class LiveReporter:
    """A progress bar with rows, tokens per second, remaining time and memory."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._meter = Meter()
        self._started = self._refreshed = 0.0
        self._rows = 0

    def stage(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, highlight=False)

    def begin(self, counts: Counts, meter: Meter) -> None:
        from rich import progress

        self._meter = meter
        self._started = time.monotonic()
        self._progress = progress.Progress(
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[speed]}"),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task(
            "rows", total=counts.rows, completed=counts.completed + counts.failed, speed=""
        )
        self._progress.start()

    def advance(self) -> None:
        self._rows += 1
        now = time.monotonic()
        if self._progress is None or self._task is None:
            return
        if now - self._refreshed < REFRESH_SECONDS:
            return
        elapsed = now - self._started
        self._progress.update(
            self._task,
            advance=self._rows,
            speed=f"{self._meter.prompt_tokens / elapsed:,.0f} prompt + "
            f"{self._meter.generated_tokens / elapsed:,.0f} new tokens/s  "
            f"{current_memory_bytes() / 1e9:.1f} GB",
        )
        self._rows = 0
        self._refreshed = now

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
