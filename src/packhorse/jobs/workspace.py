"""The files of a job: OUTPUT, OUTPUT.manifest.json and the folder OUTPUT.packhorse/.

results.jsonl                   the finished output, written atomically at the end
results.jsonl.manifest.json     settings, counts, metrics and versions
results.jsonl.packhorse/        readable by its owner only: it contains prompts and answers
    journal.sqlite3             rows and results
    lock                        held while a run works (an advisory lock: the system releases it)
    input.stdin                 standard input, kept so that the job can be resumed without it
    downloads/                  copies of remote inputs
    uploaded.json               what was uploaded, if OUTPUT is a URL

Of an output that is a URL, these files are in the current folder, under the name of the output with
a digest of the URL; results.jsonl itself only until it is uploaded.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from packhorse.config import OUTPUT_SUFFIXES
from packhorse.errors import BusyError, ConfigError, InputError, OutputError
from packhorse.storage.atomic_files import hint_for, is_there
from packhorse.storage.remote_files import check_target, check_url, upload, upload_once
from packhorse.storage.retries import Report
from packhorse.storage.urls import base_name, digest_of_url, is_url, public_name

SQLITE_PATH_BYTES = 504
"""The longest path of a database that SQLite opens: MAX_PATHNAME of its os_unix.c, 512, less 8 for
the names of files beside it."""
DOWNLOADS = "downloads"
"""Folder of copies of remote inputs, in the folder of a job."""
_FILE = ("file", Path.is_file)


@dataclass(frozen=True, slots=True)
class Workspace:
    """The paths of one output.

    Attributes:
        output: The output on this machine.
        url: Where it is uploaded once it is finished, if anywhere.
        is_streamed: Whether rows go to standard output and there is no output file.
    """

    output: Path
    url: str | None = None
    is_streamed: bool = False

    @classmethod
    def of(cls, output: Path | str) -> Workspace:
        """Return the workspace of an output, a path or a URL."""
        if not is_url(output):
            return cls(Path(output))
        url = str(output)
        stem, dot, suffixes = base_name(url).partition(".")
        return cls(Path(f"{stem}-{digest_of_url(url)}{dot}{suffixes}"), url)

    @classmethod
    def streamed(cls, settings: str) -> Workspace:
        """Return the workspace of a job whose rows go to standard output.

        It is in the current folder, the same for the same settings.
        """
        digest = blake2b(settings.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        return cls(Path(f"stdout-{digest}.jsonl"), is_streamed=True)

    def remove(self) -> None:
        """Remove the journal of a job whose rows have all been written to standard output."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def name(self) -> str:
        """The output in messages."""
        return str(self.output) if self.url is None else public_name(self.url)

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
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def spooled_input(self) -> Path:
        return self.folder / "input.stdin"

    @property
    def downloads(self) -> Path:
        return self.folder / DOWNLOADS

    @property
    def is_uploaded(self) -> bool:
        """Whether the output is where it belongs: its local copy is removed after the upload."""
        return self.url is None or not is_there(self.output)

    def check(self, source: str) -> None:
        """Refuse outputs that cannot be written or would overwrite files of another origin.

        Raises ConfigError or OutputError.
        """
        if not self.output.name.lower().endswith(OUTPUT_SUFFIXES):
            raise ConfigError(
                f"the output {self.name} has no known suffix",
                f"use one of {', '.join(OUTPUT_SUFFIXES)}",
            )
        if is_there(self.output) and self.output.is_dir():
            raise OutputError(f"the output {self.output} is a folder", "name a file")
        parent = self.output.absolute().parent
        if not is_there(parent) or not parent.is_dir():
            raise OutputError(f"the folder {parent} does not exist", "create it first")
        for folder in {parent, Path(os.path.realpath(self.output)).parent}:
            if not os.access(folder, os.W_OK | os.X_OK):
                raise OutputError(
                    f"the folder {folder} cannot be written to", "choose another output"
                )
        self._check_side_files()
        if self._is_output(source):
            raise ConfigError("the output is the input", "name another output file")
        if is_there(self.output) and not is_there(self.journal):
            raise OutputError(
                f"{self.output} exists and was not written by a job that can be resumed",
                "remove it or name another output",
            )

    def check_target(self, report: Report) -> None:
        """Refuse a URL that cannot be written to, or a file there that no job here has written.

        Raises ConfigError or OutputError.
        """
        if self.url is None:
            return
        check_url(self.url, is_output=True)
        if not is_there(self.journal) and check_target(self.url, report):
            raise OutputError(
                f"{self.name} exists and was not written by a job that can be resumed here",
                "remove it, name another output, or run the command in the folder where it began",
            )

    def upload(self, report: Report) -> None:
        """Upload the finished output and its manifest to the URL, and remove the local output.

        Raises OutputError; the local output is kept.
        """
        if self.url is None:
            return
        try:
            upload_once(self.output, self.url, self.folder / "uploaded.json", report)
            upload(self.manifest, f"{self.url}.manifest.json", report)
        except OutputError as error:
            raise OutputError(
                f"{error}; the finished output is {self.output.absolute()}",
                f"{error.hint}; the same command only uploads it",
            ) from error
        self.output.unlink()

    def _is_output(self, source: str) -> bool:
        """Return whether an input is the output."""
        if source == "-":
            return False
        if is_url(source) or self.url is not None:
            return is_url(source) and source == self.url
        return _same_file(Path(source), self.output)

    def _check_side_files(self) -> None:
        """Raise OutputError if manifest and journal cannot be written beside the output."""
        log = self.journal.with_name(f"{self.journal.name}-wal")
        for path, what in ((self.manifest, "manifest"), (self.folder, "folder"), (log, "journal")):
            try:
                path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise OutputError(
                    f"the {what} {path} of this output cannot be written: {error.strerror}",
                    hint_for(error),
                ) from error
        length = len(os.fsencode(os.path.realpath(self.journal)))
        if length > SQLITE_PATH_BYTES:
            raise OutputError(
                f"the journal {self.journal} cannot be opened: its path has {length} bytes, and "
                f"SQLite takes {SQLITE_PATH_BYTES}",
                "choose an output whose path is shorter",
            )
        for path in (self.manifest, self.folder, self.journal, self.lock, self.spooled_input):
            kind, is_right = ("folder", Path.is_dir) if path == self.folder else _FILE
            if os.path.lexists(path) and not is_right(path):
                raise OutputError(
                    f"{path} must be a {kind} for this output",
                    "move it away, or name another output",
                )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Create the folder and hold its lock; raise BusyError if another run holds it."""
        import filelock

        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.folder} cannot be created: {error.strerror}", hint_for(error)
            ) from error
        lock = filelock.FileLock(self.lock, mode=0o600)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise BusyError(
                f"another run is writing {self.name}", "wait for it, or name another output"
            ) from None
        except OSError as error:
            raise OutputError(
                f"{self.folder} cannot be written to: {error.strerror}", hint_for(error)
            ) from error
        try:
            yield
        finally:
            lock.release()

    def spool_standard_input(self) -> Path:
        """Copy standard input into the folder (replacing an older copy) and return the copy.

        If standard input is closed, a terminal or empty, the copy of an earlier run is used.
        """
        partial = self.spooled_input.with_suffix(".partial")
        if _has_standard_input():
            try:
                with open(partial, "wb", opener=_private) as copy:
                    shutil.copyfileobj(sys.stdin.buffer, copy, 1 << 20)
            except OSError as error:
                with suppress(OSError):
                    partial.unlink()
                raise OutputError(
                    f"standard input cannot be copied to {partial}: {error.strerror or error}",
                    hint_for(error),
                ) from error
            if partial.stat().st_size:
                partial.replace(self.spooled_input)
                return self.spooled_input
            partial.unlink()
        if not self.spooled_input.exists():
            raise InputError("standard input is empty", "pipe rows in, or name a file")
        return self.spooled_input


def _private(path: str, flags: int) -> int:
    """Open a file that only its owner may read."""
    return os.open(path, flags, 0o600)


def _has_standard_input() -> bool:
    """Report whether there is a file or a pipe to read; raise InputError for a device."""
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
