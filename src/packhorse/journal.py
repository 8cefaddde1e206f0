"""The journal: which rows the input has, and what is known of each.

Results are committed in groups, twice a second and however long the engine computes on
(`packhorse.durable`), so a killed run loses at most the rows of the last half second and no file is
ever torn. Resume is a set difference: rows of the input whose key has no result.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.atomic import is_there
from packhorse.data import Answer, Failure, FinishReason, Request, RowId
from packhorse.durable import DurableDatabase
from packhorse.errors import InputError, JobChangedError, OutputError

FORMAT = 1

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
    """One output's journal. Use as a context manager; one process at a time.

    Any thread may call it, and a signal handler may. Every method raises OutputError once the disk
    is full or does not answer.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        if read_only and not is_there(path):
            raise OutputError(
                f"there is no journal at {path}", "name the output of a run that was begun here"
            )
        self._database = DurableDatabase(path, _SCHEMA)
        found = self.meta("format")
        if found is None:
            with self._database.transaction() as connection:
                connection.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (FORMAT,))
        elif found != FORMAT:
            self.close()
            raise OutputError(
                f"the journal {path} has format {found}, this version reads {FORMAT}",
                "continue it with the version that began it, or name another output",
            )

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Raises OutputError where what was recorded last cannot be written; it is closed still."""
        self._database.close()

    def enlist(self, rows: Iterable[Request | Failure]) -> None:
        """Replaces the list of input rows by `rows`; results stay.

        Raises InputError for two rows of one id, naming both lines. Text and number ids that are
        written alike count as one: CSV cannot tell them apart.
        """
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM rows")
            for row in rows:
                self._enlist_row(connection, row)

    def _enlist_row(self, connection: sqlite3.Connection, row: Request | Failure) -> None:
        chat, code, message = False, None, None
        if isinstance(row, Failure):
            code, message = row.code, row.message
        else:
            chat = not isinstance(row.content, str)
        identity = (row.index, row.key, str(row.id), json.dumps(row.id), row.line)
        values = (*identity, chat, code, message)
        try:
            connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        except sqlite3.IntegrityError:
            found = connection.execute("SELECT line FROM rows WHERE id = ?", (str(row.id),))
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
        with self._database.held() as connection:
            found = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if found is None else json.loads(found[0])

    def set_meta(self, name: str, value: Any) -> None:
        row = (name, json.dumps(value))
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", row)

    def has_only_chats(self) -> bool:
        """Whether every row that can be run goes through a chat template, if the model has one:
        OpenAI's completions do not."""
        if self.meta("openai") is None:
            return True
        with self._database.held() as connection:
            found = connection.execute(
                "SELECT 1 FROM rows WHERE error_code IS NULL AND NOT chat LIMIT 1"
            ).fetchone()
        return found is None

    def pending_positions(self) -> array[int]:
        """Positions of the rows without a result, ascending (8 bytes a row in memory)."""
        found = self._database.select(
            "SELECT position FROM rows LEFT JOIN results USING (key)"
            " WHERE rows.error_code IS NULL AND results.key IS NULL ORDER BY position"
        )
        return array("Q", (position for (position,) in found))

    def record(self, outcome: Answer | Failure) -> None:
        """Stores one outcome; it is durable about half a second later."""
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
        self._database.write(
            "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values
        )

    def add_note(self, key: str, note: dict[str, Any]) -> None:
        """Says more of the result of a row; durable with it."""
        self._database.write("INSERT OR REPLACE INTO notes VALUES (?, ?)", (key, json.dumps(note)))

    def commit(self) -> None:
        """Makes what was recorded durable."""
        self._database.commit()

    def forget_failures(self) -> None:
        """Makes the rows that failed in an engine or in tokenization pending again."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM results WHERE error_code IS NOT NULL")

    def counts(self) -> Counts:
        with self._database.held() as connection:
            rows, completed = connection.execute(
                "SELECT count(*), count(finish_reason) FROM rows LEFT JOIN results USING (key)"
                " WHERE rows.error_code IS NULL"
            ).fetchone()
            by_code = dict(
                connection.execute(
                    "SELECT coalesce(rows.error_code, results.error_code) AS code, count(*)"
                    " FROM rows LEFT JOIN results USING (key) WHERE code IS NOT NULL"
                    " GROUP BY code ORDER BY code"
                ).fetchall()
            )
            (unreadable,) = connection.execute(
                "SELECT count(*) FROM rows WHERE error_code IS NOT NULL"
            ).fetchone()
        return Counts(rows + unreadable, completed, sum(by_code.values()), by_code)

    def records(self) -> Iterator[Record]:
        """Every input row once, in input order."""
        found = self._database.select(
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
        row = (json.dumps(figures),)
        with self._database.transaction() as connection:
            connection.execute("INSERT INTO sessions (figures) VALUES (?)", row)

    def sessions(self) -> list[dict[str, Any]]:
        found = self._database.select("SELECT figures FROM sessions ORDER BY number")
        return [json.loads(figures) for (figures,) in found]
