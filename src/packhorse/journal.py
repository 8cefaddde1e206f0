"""The journal: which rows the input has, and what is known of each.

SQLite in WAL mode with full synchronisation; results are committed in groups, at least twice a
second, so a killed run loses at most the rows of the last half second and no file is ever torn.
Resume is a set difference: rows of the input whose key has no result.
"""

from __future__ import annotations

import json
import sqlite3
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.data import Answer, Failure, FinishReason, Request, RowId
from packhorse.errors import InputError, JobChangedError, OutputError

FORMAT = 1
COMMIT_SECONDS = 0.5
_BUSY_SECONDS = 30

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (
    position INTEGER PRIMARY KEY, key TEXT NOT NULL, id TEXT NOT NULL UNIQUE, id_json TEXT NOT NULL,
    line INTEGER, chat INTEGER NOT NULL, error_code TEXT, error_message TEXT);
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY, text TEXT, token_ids BLOB, finish_reason TEXT, prompt_tokens INTEGER,
    completion_tokens INTEGER, error_code TEXT, error_message TEXT,
    submitted REAL, first_token REAL, finished REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, note TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions (number INTEGER PRIMARY KEY, figures TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of the input by state; `rows` = completed + failed + pending."""

    rows: int
    completed: int
    failed: int
    failed_by_code: dict[str, int]

    @property
    def pending(self) -> int:
        return self.rows - self.completed - self.failed


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the input with what is known of it; state is completed, failed or pending.

    note: what a job has to say of a result besides its text.
    """

    id: RowId
    line: int | None
    chat: bool
    text: str | None
    token_ids: tuple[int, ...] | None
    finish_reason: FinishReason | None
    prompt_tokens: int | None
    completion_tokens: int | None
    error_code: str | None
    error_message: str | None
    latency_seconds: float | None
    first_token_seconds: float | None
    note: dict[str, Any] | None = None


class Journal:
    """One output's journal. Use as a context manager; one thread, one process at a time."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._database = _connect(path, read_only)
        self._last_commit = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Raises OutputError where what was recorded last cannot be written; it is closed still."""
        try:
            self.commit()
        finally:
            self._database.close()

    def enlist(self, rows: Iterable[Request | Failure]) -> None:
        """Replaces the list of input rows by `rows`; results stay.

        Raises InputError for two rows of one id, naming both lines. Text and number ids that are
        written alike count as one: CSV cannot tell them apart.
        """
        database = self._database
        database.commit()
        database.execute("BEGIN")
        try:
            database.execute("DELETE FROM rows")
            for row in rows:
                self._enlist_row(row)
        except BaseException:
            database.rollback()
            raise
        database.commit()

    def _enlist_row(self, row: Request | Failure) -> None:
        chat, code, message = False, None, None
        if isinstance(row, Failure):
            code, message = row.code, row.message
        else:
            chat = not isinstance(row.content, str)
        identity = (row.index, row.key, str(row.id), json.dumps(row.id), row.line)
        values = (*identity, chat, code, message)
        try:
            self._database.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        except sqlite3.IntegrityError:
            found = self._database.execute("SELECT line FROM rows WHERE id = ?", (str(row.id),))
            raise InputError(
                f"lines {found.fetchone()[0]} and {row.line} have the same id {row.id!r}",
                "give every row an id of its own, or none",
            ) from None

    def bind(self, settings: dict[str, Any]) -> None:
        """Ties the journal to what decides its results; raises as `check`."""
        self.check(settings)
        self.set_meta("settings", settings)

    def is_bound(self) -> bool:
        """Whether a run has tied this journal to settings."""
        return self.meta("settings") is not None

    def check(self, settings: dict[str, Any]) -> None:
        """JobChangedError, showing the difference, where the journal is tied to other settings."""
        known = self.meta("settings")
        if known is None:
            return
        changed = [name for name, value in settings.items() if known.get(name) != value]
        if changed:
            difference = "; ".join(
                f"{name} was {known.get(name)!r}, is {settings.get(name)!r}" for name in changed
            )
            raise JobChangedError(
                f"this output was begun with other settings: {difference}",
                "use the settings it was begun with, or name another output",
            )

    def meta(self, name: str) -> Any:
        found = self._database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if found is None else json.loads(found[0])

    def set_meta(self, name: str, value: Any) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value))
        )
        self._database.commit()

    def pending_positions(self) -> array[int]:
        """Positions of the rows without a result, ascending (8 bytes a row in memory)."""
        found = self._database.execute(
            "SELECT position FROM rows LEFT JOIN results USING (key)"
            " WHERE rows.error_code IS NULL AND results.key IS NULL ORDER BY position"
        )
        return array("Q", (position for (position,) in found))

    def record(self, outcome: Answer | Failure) -> None:
        """Stores one outcome; it is durable after the next commit, at most COMMIT_SECONDS later."""
        if isinstance(outcome, Failure):
            values: tuple[Any, ...] = (
                outcome.key, None, None, None, None, None, outcome.code, outcome.message,
                None, None, None,
            )  # fmt: skip
        else:
            timing = outcome.timing
            values = (
                outcome.key, outcome.text, array("I", outcome.token_ids).tobytes(),
                outcome.finish_reason, outcome.prompt_tokens, outcome.completion_tokens, None, None,
                timing.submitted, timing.first_token, timing.finished,
            )  # fmt: skip
        self._database.execute(
            "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values
        )
        if time.monotonic() - self._last_commit >= COMMIT_SECONDS:
            self.commit()

    def add_note(self, key: str, note: dict[str, Any]) -> None:
        """Says more of the result of a row; durable with it."""
        self._database.execute(
            "INSERT OR REPLACE INTO notes VALUES (?, ?)", (key, json.dumps(note))
        )

    def commit(self) -> None:
        try:
            self._database.commit()
        except sqlite3.OperationalError as error:
            raise OutputError(
                f"the journal cannot be written: {error}", "free some disk space and run again"
            ) from error
        self._last_commit = time.monotonic()

    def forget_failures(self) -> None:
        """Makes the rows that failed in an engine or in tokenization pending again."""
        self._database.execute("DELETE FROM results WHERE error_code IS NOT NULL")
        self._database.commit()

    def counts(self) -> Counts:
        rows, completed = self._database.execute(
            "SELECT count(*), count(finish_reason) FROM rows LEFT JOIN results USING (key)"
            " WHERE rows.error_code IS NULL"
        ).fetchone()
        by_code = dict(
            self._database.execute(
                "SELECT coalesce(rows.error_code, results.error_code) AS code, count(*)"
                " FROM rows LEFT JOIN results USING (key) WHERE code IS NOT NULL"
                " GROUP BY code ORDER BY code"
            ).fetchall()
        )
        (unreadable,) = self._database.execute(
            "SELECT count(*) FROM rows WHERE error_code IS NOT NULL"
        ).fetchone()
        return Counts(rows + unreadable, completed, sum(by_code.values()), by_code)

    def records(self) -> Iterator[Record]:
        """Every input row once, in input order."""
        found = self._database.execute(
            "SELECT id_json, line, chat, text, token_ids, finish_reason, prompt_tokens,"
            " completion_tokens, coalesce(rows.error_code, results.error_code),"
            " coalesce(rows.error_message, results.error_message),"
            " finished - submitted, first_token - submitted, note"
            " FROM rows LEFT JOIN results ON results.key = rows.key AND rows.error_code IS NULL"
            " LEFT JOIN notes ON notes.key = results.key"
            " ORDER BY position"
        )
        for id_json, line, chat, text, token_ids, *rest, note in found:
            ids = None if token_ids is None else tuple(array("I", token_ids))
            rest.append(None if note is None else json.loads(note))
            yield Record(json.loads(id_json), line, bool(chat), text, ids, *rest)

    def add_session(self, figures: dict[str, Any]) -> None:
        self._database.execute("INSERT INTO sessions (figures) VALUES (?)", (json.dumps(figures),))
        self._database.commit()

    def sessions(self) -> list[dict[str, Any]]:
        found = self._database.execute("SELECT figures FROM sessions ORDER BY number")
        return [json.loads(figures) for (figures,) in found]


def _use_wal(database: sqlite3.Connection) -> None:
    """Where two would upgrade a lock at once, SQLite fails without waiting: it is tried again."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _connect(path: Path, read_only: bool) -> sqlite3.Connection:
    if read_only and not path.exists():
        raise OutputError(
            f"there is no journal at {path}", "name the output of a run that was begun here"
        )
    try:
        database = sqlite3.connect(path, timeout=_BUSY_SECONDS)
        _use_wal(database)
        database.execute("PRAGMA synchronous = FULL")
        database.executescript(_SCHEMA)
        found = database.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
        if found is None:
            database.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (str(FORMAT),))
            database.commit()
    except sqlite3.DatabaseError as error:
        raise OutputError(
            f"the journal {path} cannot be opened: {error}", "name another output"
        ) from error
    if found is not None and int(found[0]) != FORMAT:
        database.close()
        raise OutputError(
            f"the journal {path} has format {found[0]}, this version reads {FORMAT}",
            "continue it with the version that began it, or name another output",
        )
    return database
