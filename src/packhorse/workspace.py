"""Where a job keeps its state: OUTPUT, OUTPUT.manifest.json and the folder OUTPUT.packhorse/.

results.jsonl                   the finished output, written in one step at the end
results.jsonl.manifest.json     what was run, with what settings, and counts that reconcile
results.jsonl.packhorse/
    journal.sqlite3             rows and results
    lock                        held while a run works (an advisory lock: it dies with the run)
    input.stdin                 standard input, kept so that the job can go on without it
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from packhorse.atomic import is_there
from packhorse.config import OUTPUT_SUFFIXES
from packhorse.errors import BusyError, ConfigError, InputError, OutputError


@dataclass(frozen=True, slots=True)
class Workspace:
    """The paths of one output."""

    output: Path

    @property
    def folder(self) -> Path:
        return self.output.with_name(self.output.name + ".packhorse")

    @property
    def journal(self) -> Path:
        return self.folder / "journal.sqlite3"

    @property
    def manifest(self) -> Path:
        return self.output.with_name(self.output.name + ".manifest.json")

    @property
    def spooled_input(self) -> Path:
        return self.folder / "input.stdin"

    def check(self, source: str) -> None:
        """Refuses outputs that could not be written or would overwrite what is not ours."""
        if self.output.suffix.lower() not in OUTPUT_SUFFIXES:
            raise ConfigError(
                f"the output {self.output} has no known ending",
                f"end it with one of {', '.join(OUTPUT_SUFFIXES)}",
            )
        if is_there(self.output) and self.output.is_dir():
            raise OutputError(f"the output {self.output} is a folder", "name a file")
        parent = self.output.absolute().parent
        if not is_there(parent) or not parent.is_dir():
            raise OutputError(f"the folder {parent} does not exist", "create it first")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {parent} cannot be written to", "choose another output")
        if source != "-" and _same_file(Path(source), self.output):
            raise ConfigError("the output is the input", "name another output file")
        if is_there(self.output) and not is_there(self.journal):
            raise OutputError(
                f"{self.output} exists and was not made by a job that can be continued",
                "remove it or name another output",
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Creates the folder and holds its lock; BusyError when another run holds it."""
        import filelock

        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.folder} cannot be created: {error.strerror}", "choose another output"
            ) from error
        lock = filelock.FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise BusyError(
                f"another run is writing {self.output}", "wait for it, or name another output"
            ) from None
        except OSError as error:
            raise OutputError(
                f"{self.folder} cannot be written to: {error.strerror}", "choose another output"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def spool_standard_input(self) -> Path:
        """Copies standard input into the folder (replacing an older copy) and returns the copy.

        Standard input that is closed, a terminal or empty falls back to the copy of an earlier run.
        """
        partial = self.spooled_input.with_suffix(".partial")
        if _has_standard_input():
            try:
                with partial.open("wb") as copy:
                    shutil.copyfileobj(sys.stdin.buffer, copy, 1 << 20)
            except OSError as error:
                with suppress(OSError):
                    partial.unlink()
                raise OutputError(
                    f"standard input cannot be copied to {partial}: {error.strerror or error}",
                    "free some disk space and run again, or name a file",
                ) from error
            if partial.stat().st_size:
                partial.replace(self.spooled_input)
                return self.spooled_input
            partial.unlink()
        if not self.spooled_input.exists():
            raise InputError("standard input is empty", "pipe rows in, or name a file")
        return self.spooled_input


def _has_standard_input() -> bool:
    """Whether there is a file or a pipe to read; InputError for a device, which may never end."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return False
    try:
        found = os.fstat(sys.stdin.fileno())
    except OSError:  # a stream of the caller's own
        return True
    is_device = stat.S_ISCHR(found.st_mode)
    if is_device and not os.path.samestat(found, Path(os.devnull).stat()):
        raise InputError("standard input is a device", "pipe rows in, or name a file")
    return True


def _same_file(source: Path, output: Path) -> bool:
    try:
        return source.samefile(output)
    except OSError:
        return source.absolute() == output.absolute()
