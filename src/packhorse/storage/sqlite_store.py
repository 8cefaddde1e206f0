"""A SQLite database that several threads may use and that commits by itself, twice a second.

It holds what people asked their model, so only its owner may read it. WAL mode with full
synchronisation: what is committed survives a killed process and a power cut, and other processes
read while this one writes. Commits are made by a thread of their own, so that they do not wait for
whoever writes to come back.
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
"""SQLite asks for more than a page at once: a disk with less free space than this is full."""
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

    schema: statements that make its tables where there are none.
    read_only: nothing is made or changed; also what cannot be written can be read: on read-only
        media, in folders of other users.

    Any thread may call it, and a signal handler may: a thread takes the lock again that it has, and
    a statement is done before a handler runs. Raises OutputError when it cannot be opened, when the
    disk is full or does not answer, and for a damaged file; after that, at every call.
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
        """The connection, for this thread alone; what SQLite says of the disk is an OutputError.

        A statement that failed may have undone others before it, so there is no way on.
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
        """Durable with the next commit, about COMMIT_SECONDS later if nobody asks for one."""
        with self.held() as connection:
            self._has_uncommitted = True  # first, for a signal handler in between
            connection.execute(statement, values)
        if self._committing is None:
            self._committing = threading.Thread(
                target=self._commit_regularly, name="journal", daemon=True
            )
            self._committing.start()

    def commit(self) -> None:
        """Makes what `write` wrote durable; no half of a transaction that somebody began."""
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
        """All that is written inside is durable at its end, or undone."""
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
        """The rows of a selection, without holding the connection between them."""
        with self.held() as connection:
            found = connection.execute(statement)
        while True:
            with self.held():
                rows = found.fetchmany(_ROWS_AT_ONCE)
            if not rows:
                return
            yield from rows

    def close(self) -> None:
        """Makes what was written durable; no thread is left."""
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
        """Opens what is there. SQLite itself reads beside a writer, and what a killed one left,
        unless it may not make the file that it shares with others. Then nothing else can be
        writing, or it would have made it."""
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
                "set TMPDIR to a folder with room for it",
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
    """Makes a database that is whole or not there, for who looks at it in that moment."""
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
            pass  # another process was faster
        except OSError:  # a file system without links
            temporary.replace(path)
    finally:
        for each in (*_files(temporary), temporary.with_name(f"{temporary.name}-shm")):
            with suppress(OSError):
                each.unlink(missing_ok=True)
    sync_folder(path.parent)


def _files(path: Path) -> list[Path]:
    """The database, its log and its rollback journal, which need not be there."""
    return [path.with_name(path.name + ending) for ending in ("", "-wal", "-journal")]


def _signature(path: Path) -> tuple[object, ...]:
    """Changes when a file of the database does; None for one that is not there or empty."""
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
    """Text that is damaged does not keep other rows from being read."""
    return stored.decode("utf-8", "surrogateescape")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Where two would upgrade a lock at once, SQLite fails without waiting: it is tried again."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
