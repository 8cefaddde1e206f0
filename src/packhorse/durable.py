"""A SQLite database that several threads may use and that commits by itself, twice a second.

WAL mode with full synchronisation: what is committed survives a killed process and a power cut, and
other processes read while this one writes. Commits are made by a thread of their own, so that they
do not wait for whoever writes to come back.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packhorse.errors import OutputError

COMMIT_SECONDS = 0.5
_BUSY_SECONDS = 30
_ROWS_AT_ONCE = 1000


class DurableDatabase:
    """One connection behind a lock; one process writes at a time.

    schema: statements that are run when it is opened, and change nothing the second time.

    Any thread may call it, and a signal handler may: a thread takes the lock again that it has, and
    a statement is done before a handler runs. Raises OutputError when it cannot be opened, when the
    disk is full or does not answer, and for a damaged file; after that, at every call.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self._path = path
        self._connection = _connect(path, schema)
        self._lock = threading.RLock()
        self._has_uncommitted = False
        self._failure: sqlite3.DatabaseError | None = None
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
            except sqlite3.DatabaseError as error:
                self._failure = error
                raise _unusable(self._path, error) from error

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


def _connect(path: Path, schema: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(schema)
    except sqlite3.DatabaseError as error:
        raise OutputError(
            f"the journal {path} cannot be opened: {error}", "name another output"
        ) from error
    return connection


def _unusable(path: Path, error: sqlite3.DatabaseError) -> OutputError:
    is_full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    return OutputError(
        f"the journal {path} cannot be used: {error}",
        "free some disk space and run again"
        if is_full
        else "check the disk and run again, or name another output",
    )


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
