"""The journal: the rows of the input and their results.

Results are committed in groups, twice per second, independent of how long the engine computes
(`packhorse.storage.sqlite_store`), so a killed run loses at most the rows of the last half second
and no file is left incomplete. Resume is a set difference: input rows whose key has no result.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from packhorse.data import Completion, Failure, Request, free_id, id_from_json, id_to_json
from packhorse.errors import InputError, JobChangedError, OutputError
from packhorse.jobs.journal_rows import (
    FORMAT,
    SCHEMA,
    TABLES,
    Counts,
    Record,
    checked,
    is_sound,
    record_of,
)
from packhorse.outputs.columns import NOTE_COLUMNS
from packhorse.storage.atomic_files import is_there
from packhorse.storage.sqlite_store import SQLiteStore, damaged

__all__ = ["Counts", "Journal", "Record"]

_RECORDS = (
    "SELECT rows.*, results.*"
    " FROM rows LEFT JOIN results ON results.key = rows.key AND rows.error_code IS NULL"
)
_NAMED_ROWS = 5
"""Maximum number of damaged rows that a message names; of more it gives the number."""


class Journal:
    """The journal of one output. Use as a context manager, in one process at a time.

    Threads and signal handlers may call it. Every method raises OutputError once the disk is full
    or fails.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._unit = "line"
        self._columns: list[str] | None = None
        self.on_record: Callable[[int], None] = lambda position: None
        if read_only:
            _check_readable(path)
        self._database = SQLiteStore(path, SCHEMA, read_only=read_only)
        try:
            self._check_format()
        except BaseException:
            self._database.close()
            raise

    def _check_format(self) -> None:
        """Raise OutputError for a journal of another version."""
        with self._database.held() as connection:
            found = connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
        if found is None or not str(found[0]).isdecimal():
            raise damaged(self._path, "it does not say its format")
        if found[0] != FORMAT:
            raise OutputError(
                f"the journal {self._path} has format {found[0]}, this version reads {FORMAT}",
                "continue it with the version that created it, or name another output",
            )

    @property
    def path(self) -> Path:
        """The file of the journal."""
        return self._path

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the journal; raise OutputError if the last records cannot be written."""
        self._database.close()

    def register_rows(self, rows: Iterable[Request | Failure], unit: str = "line") -> None:
        """Replace the list of input rows by `rows`; results are kept.

        Text and number ids that are written alike count as one: CSV cannot tell them apart. A row
        without an id of its own never clashes: its id gets a suffix ("line-2-2") if another row
        has that id.

        Args:
            rows: All rows of the input, in its order.
            unit: What `Request.line` counts, for messages: "line" or "row".

        Raises:
            InputError: Two rows have the same id; both lines are named.
        """
        self._unit = unit
        own_ids = bytearray()
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM rows")
            for row in rows:
                own_ids.append(row.has_own_id)
                self._register_row(connection, row, own_ids)
            self._put_meta(connection, "rows", len(own_ids))

    def _register_row(
        self, connection: sqlite3.Connection, row: Request | Failure, own_ids: bytearray
    ) -> None:
        """Insert one row; `own_ids` holds by position whether a row has an id of its own."""
        chat, code, message = False, None, None
        if isinstance(row, Failure):
            code, message = row.code, row.message
        else:
            chat = row.is_chat
        identity = (row.index, row.key, str(row.id), id_to_json(row.id), row.line)
        values = (*identity, int(chat), code, message)
        try:
            _insert_row(connection, values)
            return
        except sqlite3.IntegrityError as error:
            query = "SELECT * FROM rows WHERE id = ?"
            other = connection.execute(query, (str(row.id),)).fetchone()
            if other is None:
                raise damaged(self._path, str(error)) from error
        if not row.has_own_id:
            _insert_row(connection, _with_free_id(connection, values))
        elif not own_ids[other[0]]:
            connection.execute("DELETE FROM rows WHERE position = ?", (other[0],))
            _insert_row(connection, values)
            _insert_row(connection, _with_free_id(connection, other[: len(values)]))
        else:
            raise InputError(
                f"{self._unit}s {other[4]} and {row.line} have the same id {row.id!r}",
                "give every row a unique id, or none",
            )

    def store_settings(self, settings: dict[str, Any]) -> None:
        """Store the settings that determine results; raises as `check`."""
        self.check(settings)
        self.set_meta("settings", settings)

    def binding_settings(self) -> dict[str, Any] | None:
        """Return the settings that the results were computed with, None if there are no results.

        A run that was refused or ended before its first row binds no later run.
        """
        with self._database.held() as connection:
            found = connection.execute("SELECT 1 FROM results LIMIT 1").fetchone()
        known: dict[str, Any] | None = self.meta("settings") if found else None
        return known

    def check(self, settings: dict[str, Any]) -> None:
        """Raise JobChangedError, showing the difference, if results have other settings."""
        known = self.binding_settings()
        if known is None:
            return
        changed = [name for name, value in settings.items() if known.get(name) != value]
        if changed:
            difference = "; ".join(
                f"{name} was {known.get(name)!r}, is {settings.get(name)!r}" for name in changed
            )
            raise JobChangedError(
                f"this output was started with other settings: {difference}",
                "use the settings it was started with, or name another output",
            )

    def meta(self, name: str) -> Any:
        query = "SELECT name, value, checksum FROM meta WHERE name = ?"
        with self._database.held() as connection:
            found = connection.execute(query, (name,)).fetchone()
        if found is None:
            return None
        if not is_sound(found):
            raise damaged(self._path, f"its {name} cannot be trusted")
        return json.loads(found[1])

    def set_meta(self, name: str, value: Any) -> None:
        with self._database.transaction() as connection:
            self._put_meta(connection, name, value)

    @staticmethod
    def _put_meta(connection: sqlite3.Connection, name: str, value: Any) -> None:
        row = checked((name, json.dumps(value)))
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", row)

    def has_only_chats(self) -> bool:
        """Report whether all rows that can run use a chat template, if the model has one.

        OpenAI's completions do not.
        """
        if self.meta("openai") is None:
            return True
        with self._database.held() as connection:
            found = connection.execute(
                "SELECT 1 FROM rows WHERE error_code IS NULL AND NOT chat LIMIT 1"
            ).fetchone()
        return found is None

    def pending_positions(self) -> array[int]:
        """Return the positions of the rows without a result, ascending (8 bytes per row)."""
        found = self._database.select(
            "SELECT position FROM rows LEFT JOIN results USING (key)"
            " WHERE rows.error_code IS NULL AND results.key IS NULL ORDER BY position"
        )
        return array("Q", (position for (position,) in found))

    def record(self, outcome: Completion | Failure, note: dict[str, Any] | None = None) -> None:
        """Store one outcome, and a note of the job; durable about half a second later."""
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
                float(timing.submitted),
                None if timing.first_token is None else float(timing.first_token),
                float(timing.finished),
            )  # fmt: skip
        if note:
            self.add_columns(each for name in note for each in NOTE_COLUMNS.get(name, ()))
        self._store_result((*values, None if note is None else json.dumps(note)))
        self.on_record(outcome.index)

    @property
    def columns(self) -> list[str]:
        """Columns of the output beside the usual ones, of `packhorse.outputs.columns`."""
        if self._columns is None:
            self._columns = self.meta("columns") or []
        return self._columns

    def add_columns(self, names: Iterable[str]) -> None:
        """Add columns to the output that are not there yet."""
        if new := [name for name in names if name not in self.columns]:
            self._columns = [*self.columns, *new]
            self.set_meta("columns", self._columns)

    def _store_result(self, values: tuple[Any, ...]) -> None:
        statement = f"INSERT OR REPLACE INTO results VALUES ({', '.join('?' * 13)})"  # noqa: S608
        self._database.write(statement, checked(values))

    def commit(self) -> None:
        """Make what was recorded durable."""
        self._database.commit()

    def delete_failures(self) -> None:
        """Make the rows that failed in an engine or in tokenization pending again."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM results WHERE error_code IS NOT NULL")

    def discard_damaged(self) -> int:
        """Make rows with a damaged result pending again and return their number.

        Keys out of order count as damage, since SQLite does not find the rows behind them.
        """
        lost = self._rebuild_damaged("results")
        self._rebuild_damaged("sessions")
        return lost

    def _rebuild_damaged(self, table: str) -> int:
        """Keep the undamaged rows of a table; return the number of the others."""
        _, lost, is_ordered = self._damage(table)
        if not lost and is_ordered:
            return 0
        with self._database.transaction() as connection:
            connection.execute(f"CREATE TABLE rebuilt {TABLES[table]}")
            for values in connection.execute(f"SELECT * FROM {table}"):  # noqa: S608
                if is_sound(values):
                    places = ", ".join("?" * len(values))
                    connection.execute(
                        f"INSERT OR REPLACE INTO rebuilt VALUES ({places})",  # noqa: S608
                        values,
                    )
            connection.execute(f"DROP TABLE {table}")
            connection.execute(f"ALTER TABLE rebuilt RENAME TO {table}")
        return lost

    def verify(self) -> None:
        """Raise OutputError if the rows or results stored are not those that were recorded."""
        for table in ("rows", "results"):
            number, lost, is_ordered = self._damage(table)
            if lost or not is_ordered:
                raise OutputError(
                    f"the journal {self._path} is damaged: {lost} of {number} stored {table} are "
                    f"not what was recorded{'' if is_ordered else ', and their order is wrong'}",
                    "run the job's command again: damaged rows are computed again, the others kept",
                )

    def _damage(self, table: str) -> tuple[int, int, bool]:
        """Return the stored rows of a table, how many are damaged, and whether keys ascend."""
        number, lost, is_ordered, last = 0, 0, True, None
        for values in self._database.select(f"SELECT * FROM {table}"):  # noqa: S608
            number += 1
            lost += not is_sound(values)
            key = values[0]
            is_ordered &= last is None or (type(key) is type(last) and key > last)
            last = key
        return number, lost, is_ordered

    def counts(self) -> Counts:
        """Return the rows of the input by state; `verify` checks what they are counted from."""
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
        self._check_number(rows + unreadable)
        if not all(isinstance(code, str) for code in by_code):
            raise damaged(self._path, "the error code of a row is not a text")
        return Counts(rows + unreadable, completed, sum(by_code.values()), by_code, unreadable)

    def _check_number(self, rows: int) -> None:
        """Raise OutputError if the number of rows is not the registered one."""
        registered = self.meta("rows") or 0
        if rows != registered:
            raise damaged(self._path, f"{rows} of {registered} rows are found")

    def records(self) -> Iterator[Record]:
        """Yield every input row once, in input order.

        Damaged rows are left out, and OutputError is raised at the end.
        """
        found = self._database.select(f"{_RECORDS} ORDER BY position")
        number, unsound = 0, []
        for number, values in enumerate(found, 1):
            row, result = values[:9], values[9:]
            is_row_sound = is_sound(row)
            is_own = result[0] == row[1] and is_sound(result)  # SQLite does not check its tree
            if is_row_sound and (result[0] is None or is_own):
                yield record_of(row, result)
            else:
                unsound.append(repr(id_from_json(row[3])) if is_row_sound else f"row {number}")
        if unsound:
            more = f" and {len(unsound) - _NAMED_ROWS} more" if len(unsound) > _NAMED_ROWS else ""
            raise OutputError(
                f"the journal {self._path} is damaged in {len(unsound)} of {number} rows: "
                f"{', '.join(unsound[:_NAMED_ROWS])}{more}",
                "run the job's command again: these rows are computed again, the others kept",
            )
        self._check_number(number)

    def record_at(self, position: int) -> Record | None:
        """Return the row at a place of the input, from 0; None if it is damaged or not there."""
        with self._database.held() as connection:
            query = f"{_RECORDS} WHERE rows.position = ?"
            values = connection.execute(query, (position,)).fetchone()
        if values is None or not is_sound(values[:9]):
            return None
        result = values[9:]
        is_result_sound = result[0] is None or is_sound(result)
        return record_of(values[:9], result) if is_result_sound else None

    def add_session(self, figures: dict[str, Any]) -> None:
        with self._database.transaction() as connection:
            (last,) = connection.execute("SELECT max(number) FROM sessions").fetchone()
            row = checked(((last or 0) + 1, json.dumps(figures)))
            connection.execute("INSERT INTO sessions VALUES (?, ?, ?)", row)

    def sessions(self) -> list[dict[str, Any]]:
        found = list(self._database.select("SELECT * FROM sessions ORDER BY number"))
        if not all(map(is_sound, found)):
            raise damaged(self._path, "figures of earlier sessions cannot be trusted")
        return [json.loads(figures) for _, figures, _ in found]


def _check_readable(path: Path) -> None:
    """Raise OutputError if there is no journal, or none that this user may read."""
    try:
        is_empty = path.stat().st_size == 0 and not is_there(path.with_name(f"{path.name}-wal"))
    except PermissionError as error:
        raise OutputError(
            f"the journal {path} cannot be read: {error.strerror}",
            "run this as the user who started the job, or get permission to read its folder",
        ) from error
    except OSError as error:
        raise OutputError(
            f"there is no journal at {path}", "name the output of a run that was started here"
        ) from error
    if is_empty:
        raise OutputError(
            f"the journal {path} is empty",
            "run the job's command again: it starts from the beginning",
        )


def _insert_row(connection: sqlite3.Connection, values: tuple[Any, ...]) -> None:
    connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", checked(values))


def _with_free_id(connection: sqlite3.Connection, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the row of `values` with an id that no row has."""

    def is_taken(text: str) -> bool:
        query = "SELECT 1 FROM rows WHERE id = ?"
        return connection.execute(query, (text,)).fetchone() is not None

    chosen = free_id(values[2], is_taken)
    return (*values[:2], chosen, id_to_json(chosen), *values[4:])
