"""A thread-safe SQLite database that commits twice per second.

It contains prompts and answers, so only its owner may read it. WAL mode with full synchronisation:
committed rows survive a killed process and a power cut, and other processes read while this one
writes. A separate thread commits, independent of the threads that write.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

from packhorse.errors import OutputError
from packhorse.storage.atomic_files import hint_for, is_there, sync_folder

COMMIT_SECONDS = 0.5
_BUSY_SECONDS = 30
_ROWS_AT_ONCE = 1000
_FULL_BYTES = 2**20
"""SQLite allocates more than one page at once: a disk with less free space is full."""
_DAMAGED = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_ERROR,  # a table or a column that is not there: the statements are right
)
_CLOSED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
_TROUBLE = (sqlite3.DatabaseError, UnicodeDecodeError)


class SQLiteStore:
    """One connection behind a lock; one process writes at a time.

    Threads and signal handlers may call it: the lock is reentrant, and a statement is complete
    before a handler runs. Every method raises OutputError if the database cannot be opened, the
    disk is full or fails, or the file is damaged; once it has, so does every later call.

    Args:
        schema: Statements that create the tables of a new database.
        read_only: Create and change nothing. Also works on read-only media and in folders of
            other users.
    """

    def __init__(self, path: Path, schema: Sequence[str], *, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only
        self._copy: TemporaryDirectory[str] | None = None
        self._unchanging: tuple[object, ...] | None = None
        try:
            self._connection = self._reading() if read_only else _writing(path, schema)
        except _TROUBLE as error:
            raise unusable(path, error, read_only=read_only) from error
        self._connection.text_factory = _text
        self._lock = threading.RLock()
        self._has_uncommitted = False
        self._failure: Exception | None = None
        self._committing: threading.Thread | None = None
        self._closing = threading.Event()

    @contextmanager
    def held(self) -> Iterator[sqlite3.Connection]:
        """Lock the connection for this thread; errors of the disk become OutputError.

        A failed statement may have rolled back earlier ones, so that no call succeeds after it.
        """
        with self._lock:
            try:
                if self._failure is not None:
                    raise self._failure
                yield self._connection
            except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
                raise  # what was asked is wrong, not the disk
            except _TROUBLE as error:
                self._failure = error
                raise unusable(self._path, error, read_only=self._read_only) from error
            if self._unchanging not in (None, _signature(self._path)):
                raise OutputError(
                    f"the journal {self._path} changed while it was read", "run the command again"
                )

    def write(self, statement: str, values: tuple[Any, ...]) -> None:
        """Execute a statement; durable at the next commit, at most about COMMIT_SECONDS later."""
        with self.held() as connection:
            self._has_uncommitted = True  # first, for a signal handler in between
            connection.execute(statement, values)
        if self._committing is None:
            self._committing = threading.Thread(
                target=self._commit_regularly, name="journal", daemon=True
            )
            self._committing.start()

    def commit(self) -> None:
        """Make earlier writes durable."""
        with self.held() as connection:
            if self._has_uncommitted:
                connection.commit()
                self._has_uncommitted = False

    def _commit_regularly(self) -> None:
        while not self._closing.wait(COMMIT_SECONDS):
            try:
                self.commit()
            except OutputError:
                return  # and the next call raises it

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run statements in a transaction: durable at its end, or rolled back."""
        with self.held() as connection:
            self.commit()
            connection.execute("BEGIN")
            try:
                yield connection
                connection.commit()
            except BaseException:
                connection.rollback()
                raise

    def select(self, statement: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a selection, without holding the lock between them."""
        with self.held() as connection:
            found = connection.execute(statement)
        while True:
            with self.held():
                rows = found.fetchmany(_ROWS_AT_ONCE)
            if not rows:
                return
            yield from rows

    def close(self) -> None:
        """Make earlier writes durable, end the committing thread and close the connection."""
        self._closing.set()
        if self._committing is not None:
            self._committing.join()  # without the lock, which its last commit may need
        try:
            self.commit()
        finally:
            self._connection.close()
            if self._copy is not None:
                self._copy.cleanup()

    def _reading(self) -> sqlite3.Connection:
        """Open an existing database for reading.

        SQLite reads beside a writer, and after a killed one, if it may create the shared-memory
        file. If it may not, no other process is writing, since that one would have created it.
        """
        path = self._path
        connection = _opened(path, "mode=rw")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            connection.close()
            if error.sqlite_errorcode & 0xFF not in _CLOSED:
                raise
        else:
            return connection
        self._unchanging = _signature(path)
        log, rollback = self._unchanging[1:]
        if not log and not rollback:
            return _opened(path, "mode=ro&immutable=1")
        self._copy = TemporaryDirectory(prefix="packhorse-")
        copy = Path(self._copy.name, path.name)
        try:
            for each in _files(path):
                with suppress(FileNotFoundError):
                    shutil.copyfile(each, copy.with_name(each.name))
        except OSError as error:
            self._copy.cleanup()
            raise OutputError(
                f"the journal {path} cannot be copied to {copy.parent}: {error.strerror}",
                "set TMPDIR to a folder with enough space",
            ) from error
        return _opened(copy, "mode=rw")


def unusable(path: Path, error: Exception, *, read_only: bool = False) -> OutputError:
    """Return the cause of an error of SQLite: a full disk, a damaged file, no permission.

    While it writes, SQLite may report a full disk as damage.
    """
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    may_be_full = not read_only or code not in _DAMAGED
    if code == sqlite3.SQLITE_FULL or (may_be_full and _is_full(path.parent)):
        return OutputError(
            f"the journal {path} cannot be written: the disk is full ({error})",
            "free some disk space and run again; finished rows are kept",
        )
    if code in _DAMAGED:
        return damaged(path, str(error))
    if code in _CLOSED:
        return OutputError(
            f"the journal {path} cannot be opened: {error}",
            "check who may read and write it and its folder, or name another output",
        )
    return OutputError(
        f"the journal {path} cannot be used: {error}",
        "check the disk and run again, or name another output",
    )


def damaged(path: Path, what: str) -> OutputError:
    return OutputError(
        f"the journal {path} is damaged: {what}", "restore it from a copy, or name another output"
    )


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _FULL_BYTES
    except OSError:
        return False


def _opened(path: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}",
        uri=True,
        timeout=_BUSY_SECONDS,
        check_same_thread=False,
    )


def _writing(path: Path, schema: Sequence[str]) -> sqlite3.Connection:
    if not any(_signature(path)):
        try:
            _create(path, schema)
        except OSError as error:
            raise OutputError(
                f"the journal {path} cannot be created: {error.strerror}", hint_for(error)
            ) from error
    connection = _opened(path, "mode=rw")
    try:
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path, schema: Sequence[str]) -> None:
    """Create a database atomically."""
    temporary = path.with_name(f".{os.getpid()}-{token_hex(4)}")
    was_empty = is_there(path)
    try:
        # Files that SQLite puts beside it get the same permissions.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with closing(_opened(temporary, "mode=rw")) as connection:
            _use_wal(connection)
            for statement in schema:
                connection.execute(statement)
            connection.commit()
        if was_empty:
            temporary.replace(path)
            return
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            pass  # another process created it first
        except OSError:  # a file system without links
            temporary.replace(path)
    finally:
        for each in (*_files(temporary), temporary.with_name(f"{temporary.name}-shm")):
            with suppress(OSError):
                each.unlink(missing_ok=True)
    sync_folder(path.parent)


def _files(path: Path) -> list[Path]:
    """Return the paths of the database, its log and its rollback journal; they may not exist."""
    return [path.with_name(path.name + ending) for ending in ("", "-wal", "-journal")]


def _signature(path: Path) -> tuple[object, ...]:
    """Return sizes and times of the files, None for one that does not exist or is empty."""
    found: list[object] = []
    for each in _files(path):
        try:
            state = each.stat()
        except OSError:
            found.append(None)
        else:
            found.append((state.st_mtime_ns, state.st_size) if state.st_size else None)
    return tuple(found)


def _text(stored: bytes) -> str:
    """Decode text; damaged text must not prevent the reading of other rows."""
    return stored.decode("utf-8", "surrogateescape")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Enable WAL; retry, since SQLite does not wait if two connections upgrade a lock at once."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
