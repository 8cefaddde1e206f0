"""The tables of the journal, and what one row of them says.

Every row ends in a checksum of its other values: a journal is kept for weeks, copied between
machines, restored from backups, and a text that changed on the way must not reach the output.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from packhorse.data import FinishReason, RowId, id_from_json

FORMAT = "2"

TABLES = {
    "meta": "(name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum BLOB NOT NULL)",
    "rows": "(position INTEGER PRIMARY KEY, key TEXT NOT NULL, id TEXT NOT NULL UNIQUE,"
    " id_json TEXT NOT NULL, line INTEGER, chat INTEGER NOT NULL, error_code TEXT,"
    " error_message TEXT, checksum BLOB NOT NULL)",
    "results": "(key TEXT PRIMARY KEY, text TEXT, token_ids BLOB, finish_reason TEXT,"
    " prompt_tokens INTEGER, completion_tokens INTEGER, error_code TEXT, error_message TEXT,"
    " submitted REAL, first_token REAL, finished REAL, note TEXT, checksum BLOB NOT NULL)"
    " WITHOUT ROWID",
    "sessions": "(number INTEGER PRIMARY KEY, figures TEXT NOT NULL, checksum BLOB NOT NULL)",
}
SCHEMA = (
    *(f"CREATE TABLE {name} {columns}" for name, columns in TABLES.items()),
    f"INSERT INTO meta VALUES ('format', '{FORMAT}', '')",  # noqa: S608
)
_CHECKSUM_BYTES = 8


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of the input by state; `rows` = completed + failed + pending.

    unreadable: failed rows that were refused when the input was read, which are no results.
    """

    rows: int
    completed: int
    failed: int
    failed_by_code: dict[str, int]
    unreadable: int = 0

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


def record_of(row: Sequence[Any], result: Sequence[Any]) -> Record:
    """From a row of `rows` and, if there is one, of `results`; both sound."""
    _, text, token_ids, finish_reason, prompt_tokens, completion_tokens, *rest, _ = result
    code, message, submitted, first_token, finished, note = rest
    return Record(
        id=id_from_json(row[3]),
        line=row[4],
        chat=bool(row[5]),
        text=text,
        token_ids=None if token_ids is None else tuple(array("I", token_ids)),
        finish_reason=finish_reason,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        error_code=row[6] or code,
        error_message=row[7] or message,
        latency_seconds=None if finished is None else finished - submitted,
        first_token_seconds=None if first_token is None else first_token - submitted,
        note=None if note is None else json.loads(note),
    )


def checked(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row to be stored, with its checksum."""
    return (*values, _checksum(values))


def is_sound(stored: Sequence[Any]) -> bool:
    """Whether a row, whose checksum comes last, is what was stored."""
    return bool(_checksum(stored[:-1]) == stored[-1])


def _checksum(values: Sequence[Any]) -> bytes:
    """The same in every version of Python, as a journal may be read by another one."""
    content = [value.hex() if isinstance(value, bytes) else value for value in values]
    return blake2b(json.dumps(content).encode(), digest_size=_CHECKSUM_BYTES).digest()
