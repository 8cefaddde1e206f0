"""Fields of a row to a Request, or to the Failure that says why not: one place for all formats."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from hashlib import blake2b
from typing import Any

from packhorse.config import MessagesFormat, RowOptions
from packhorse.data import Content, Failure, NumberId, Request, RowId
from packhorse.inputs.conversations import (
    CONVERSATIONS,
    SYSTEM,
    is_conversation,
    read_conversation,
    read_token_ids,
    value_at,
)
from packhorse.inputs.template import Template
from packhorse.openai_format.prompt_fields import read_prompt_options
from packhorse.openai_format.request_fields import is_option, read_request_options
from packhorse.openai_format.row_errors import RowError, format_value
from packhorse.openai_format.row_options import parse_text_option, read_row_options, unknown_names

Fields = Mapping[str, Any]
Report = Callable[[str], None]
"""Takes a warning about an input as a whole."""
_MAX_ID_DIGITS = 4300
"""Limit of characters of a number that is an id: as many digits as Python parses."""
# Made once: json.dumps would make one for every row.
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file, before its fields are interpreted.

    Attributes:
        line: 1-based line number (JSONL, text, CSV) or row number (Parquet).
        fallback_id: The row's id if it has none of its own.
        read: Return the row's fields by name, or raise the RowError that says why they cannot be
            read. A single field that cannot be read is a RowError as its value.
        raw: The row's bytes or a digest of them, by which a Failure is recognised in the next run.
            None: the fields identify it.
    """

    line: int
    fallback_id: str
    read: Callable[[], Fields]
    raw: bytes | None


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Which fields of a row hold its prompt, id and options.

    Attributes:
        template: Builds the prompt from fields; if None, `prompt_field` holds it.
        prompt_field: The field that holds the prompt, with dots for fields inside others; if None,
            "prompt", "messages" or "prompt_token_ids" does, and "conversations" for ShareGPT.
        messages_format: How messages are stored.
        row_options: Whether fields with the name of an option are options; see
            `packhorse.openai_format.row_options`.
        columns: Names of all columns of a table; a row of JSONL has names of its own.
        has_text_options: Whether options are written as text (CSV).
        id_field: The field of the row's own id.
        read_envelope: Returns the fields of a request inside an envelope that holds the id.
        bare: Whether text prompts are run without a chat template; see `Request`.
        prompt_names: Fields that make the prompt.
        prompt_columns: Fields of the row that hold them, which may be inside them.
    """

    template: Template | None = None
    prompt_field: str | None = None
    messages_format: MessagesFormat = "auto"
    row_options: RowOptions = "auto"
    columns: tuple[str, ...] = ()
    has_text_options: bool = False
    id_field: str = "id"
    read_envelope: Callable[[Fields], Fields] | None = None
    bare: bool = False
    prompt_names: tuple[str, ...] = field(init=False)
    prompt_columns: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:  # these are needed for every row
        names = self._find_prompt_names()
        columns = names if self.template is not None else map(self._column_of, names)
        object.__setattr__(self, "prompt_names", names)
        object.__setattr__(self, "prompt_columns", tuple(columns))

    def _column_of(self, name: str) -> str:
        return name if name in self.columns else name.partition(".")[0]

    def _find_prompt_names(self) -> tuple[str, ...]:
        if self.template is not None:
            return self.template.names
        if self.prompt_field is not None:
            return (self.prompt_field,)
        known = ("prompt", "messages", TOKEN_IDS)
        return (*known, CONVERSATIONS, SYSTEM) if self.messages_format == "sharegpt" else known

    @property
    def option_columns(self) -> tuple[str, ...]:
        """Columns with the name of an option that are not part of the prompt."""
        others = (name for name in self.columns if name not in self.prompt_columns)
        return tuple(dict.fromkeys(name for name in others if is_option(name)))

    @property
    def unknown_columns(self) -> list[str]:
        """Columns that are neither id, prompt nor option."""
        used = {self.id_field, *self.prompt_columns}
        return unknown_names([name for name in self.columns if name not in used])

    @property
    def names(self) -> tuple[str, ...]:
        """Fields that make the row, each once; for JSONL without its options."""
        return tuple(dict.fromkeys((self.id_field, *self.prompt_columns, *self.option_columns)))


TOKEN_IDS = "prompt_token_ids"  # noqa: S105 (no secret)
"""Field of a prompt that is given as token ids."""
LONE_SURROGATE = (
    "the row contains half a surrogate pair (such as \\ud800), which is not a character; "
    "remove it, or write both halves"
)
NESTED_TOO_DEEPLY = "the JSON is nested too deeply; flatten the row"


class RowKeys:
    """Keys that identify rows across runs, so that a finished row is found wherever it stands.

    A key is the 128-bit BLAKE2b digest of a row's id, content and options, in hex. Rows without an
    id of their own can be equal: the second one gets "-2" after the digest, and so on. The
    occurrence counters take about 90 bytes per row. If two of their 56-bit hashes collide, a row
    only gets a needless "-2".
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def for_request(
        self, row_id: RowId | None, content: Content, options: Fields, bare: bool
    ) -> str:
        """Return the key of a request.

        Raises:
            UnicodeEncodeError: For text with lone surrogates.
        """
        # JSON would write a NumberId like the equal text, so it gets a form of its own.
        named = {"number": row_id} if isinstance(row_id, NumberId) else row_id
        identity = canonical_json([named, content, options]).encode("utf-8")
        return self._key(identity, b"bare request" if bare else b"request", row_id)

    def for_failure(self, row_id: RowId | None, raw: bytes) -> str:
        return self._key(raw, b"failure", row_id)

    def _key(self, identity: bytes, kind: bytes, row_id: RowId | None) -> str:
        digest = blake2b(identity, digest_size=16, person=kind).digest()
        if row_id is not None:
            return digest.hex()
        counter = int.from_bytes(digest[:7], "big")
        occurrence = self._counts.get(counter, 0) + 1
        self._counts[counter] = occurrence
        return digest.hex() if occurrence == 1 else f"{digest.hex()}-{occurrence}"


def parse_row(index: int, record: Record, layout: RowLayout, keys: RowKeys) -> Request | Failure:
    """Return `record`, the row at `index` of the input, as a Request, or the Failure that it is."""
    row_id: RowId | None = None
    try:
        fields = record.read()
        row_id = _read_id(fields.get(layout.id_field))
        for value in fields.values():
            if isinstance(value, RowError):
                raise value
        if layout.read_envelope is not None:
            fields = layout.read_envelope(fields)
        content = _read_content(fields, layout)
        is_chat = type(content) is tuple  # TokenIds is another type
        options, prompt_options = _read_options(fields, layout, is_chat=is_chat)
        bare = layout.bare and not is_chat
        own = {**options, **prompt_options} if prompt_options else options
        key = keys.for_request(row_id, content, own, bare)
    except RowError as error:
        code, message = error.code, str(error)
    except UnicodeEncodeError:
        code, message = "invalid_unicode", LONE_SURROGATE
    except RecursionError:
        code, message = "malformed_json", NESTED_TOO_DEEPLY
    else:
        has_own_id = row_id is not None
        own_or_fallback = record.fallback_id if row_id is None else row_id
        return Request(
            index,
            own_or_fallback,
            record.line,
            content,
            options,
            key,
            bare,
            has_own_id,
            prompt_options,
        )
    return Failure(
        index,
        code,
        message,
        id=record.fallback_id if row_id is None else row_id,
        line=record.line,
        key=keys.for_failure(row_id, _raw(record)),
        has_own_id=row_id is not None,
    )


def canonical_json(value: Any) -> str:
    """Return the same text for equal values; values without a JSON form are written by str()."""
    return _ENCODER.encode(value)


def _raw(record: Record) -> bytes:
    if record.raw is not None:
        return record.raw
    return canonical_json(record.read()).encode("utf-8", "surrogatepass")


def _read_id(value: Any) -> RowId | None:
    if isinstance(value, RowError):
        raise value
    if value is None:
        return None
    if isinstance(value, str):
        if isinstance(value, NumberId) and len(value) > _MAX_ID_DIGITS:
            raise RowError(
                "bad_id", f"the id must have at most {_MAX_ID_DIGITS:,} digits, got {len(value):,}"
            )
        if not value:
            raise RowError("bad_id", "the id must not be empty; give it a value or leave it out")
        value.encode("utf-8")  # raises UnicodeEncodeError for half a surrogate pair
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return NumberId(repr(value))
    if isinstance(value, Decimal) and value.is_finite():
        return NumberId(format(value, "f"))
    if isinstance(value, (date, time)):
        return str(value)
    raise RowError("bad_id", f"the id must be text, a number or a time, got {format_value(value)}")


def _read_content(fields: Fields, layout: RowLayout) -> Content:
    if layout.template is not None:
        return layout.template.render(fields)
    if layout.prompt_field is not None:
        return _read_prompt(fields, layout.prompt_field, layout.messages_format)
    given = [name for name in layout.prompt_names if fields.get(name) is not None]
    if len(given) > 1 and given != [CONVERSATIONS, SYSTEM]:
        raise RowError("bad_prompt", f"the row has both {' and '.join(given)}; keep one of them")
    if not given:
        name = "messages" if "messages" in fields and "prompt" not in fields else "prompt"
        if layout.messages_format == "sharegpt" and name not in fields:
            name = CONVERSATIONS
        return _read_prompt(fields, name, layout.messages_format)
    if given[0] == TOKEN_IDS:
        return read_token_ids(fields[TOKEN_IDS], TOKEN_IDS)
    if given[0] == "prompt":
        return _read_prompt(fields, "prompt", layout.messages_format)
    system = fields.get(SYSTEM) if given[0] == CONVERSATIONS else None
    return read_conversation(fields[given[0]], layout.messages_format, system)


def _read_options(
    fields: Fields, layout: RowLayout, *, is_chat: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options among the fields that are not part of the prompt: of sampling, of the
    prompt."""
    if layout.read_envelope is not None:  # which rejects fields that are not supported
        options = read_request_options(fields, is_chat=is_chat)
        return options, read_prompt_options(fields) if is_chat else {}
    used = {layout.id_field, *layout.prompt_columns}
    left = {name: value for name, value in fields.items() if name not in used}
    if layout.has_text_options:
        left = {name: parse_text_option(name, value) for name, value in left.items()}
    unknown = layout.unknown_columns if layout.columns else unknown_names(left)
    return read_row_options(left, unknown, layout.row_options)


def _read_prompt(fields: Fields, name: str, messages_format: MessagesFormat) -> Content:
    """Return what a field holds: text, or messages.

    Text is messages only if a format of messages is named, or in fields that hold nothing else.
    """
    value = value_at(fields, name)
    if value is None and name in fields:
        raise RowError("missing_prompt", f"{format_value(name)} is null; give the row a prompt")
    if value is None:
        raise RowError(
            "missing_prompt",
            f"the row has no {format_value(name)}, only {_list_names(fields)}; "
            "give it a prompt or messages, or say which field to use with --prompt-column",
        )
    if isinstance(value, list) and value and isinstance(value[0], int):
        return read_token_ids(value, name)
    if is_conversation(value, name, messages_format):
        return read_conversation(value, messages_format)
    if not isinstance(value, str):
        raise RowError(
            "bad_prompt", f"{format_value(name)} must be text, got {format_value(value)}"
        )
    if not value.strip():
        raise RowError("empty_prompt", f"{format_value(name)} is blank; give the row a prompt")
    return value


def _list_names(fields: Fields, limit: int = 8) -> str:
    names = [format_value(name) for name in list(fields)[:limit]]
    return (", ".join(names) or "nothing") + (", ..." if len(fields) > limit else "")
