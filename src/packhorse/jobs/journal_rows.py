"""The tables of the journal and the content of their rows.

Every row ends in a checksum of its other values: journals are kept for weeks, copied between
machines and restored from backups, and a damaged text must not reach the output.
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

    Attributes:
        unreadable: Failed rows that were refused when the input was read; they have no result.
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
    """One row of the input and its result; state is completed, failed or pending.

    Attributes:
        note: What a job stores with a result besides its text.
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
    """Return the record of a row of `rows` and its row of `results`, or NULLs; both undamaged."""
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
    """Return a row with its checksum, as it is stored."""
    return (*values, _checksum(values))


def is_sound(stored: Sequence[Any]) -> bool:
    """Report whether a stored row, whose checksum comes last, is undamaged."""
    return bool(_checksum(stored[:-1]) == stored[-1])


def _checksum(values: Sequence[Any]) -> bytes:
    """Return the checksum of a row, the same in every version of Python."""
    content = [value.hex() if isinstance(value, bytes) else value for value in values]
    return blake2b(json.dumps(content).encode(), digest_size=_CHECKSUM_BYTES).digest()
