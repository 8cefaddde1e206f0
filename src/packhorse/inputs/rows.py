"""The one place where the fields of a row become a Request, or the Failure that says why not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from hashlib import blake2b
from typing import Any

from packhorse.config import RowOptions
from packhorse.data import Failure, Message, NumberId, Request, RowId
from packhorse.inputs.template import Template
from packhorse.openai_format.messages import read_messages
from packhorse.openai_format.request_options import (
    from_text,
    is_option,
    read_options,
    read_row_options,
    unknown_names,
)
from packhorse.openai_format.row_errors import RowError, shown

Fields = Mapping[str, Any]
Content = str | tuple[Message, ...]
_MAX_NUMBER_ID = 4300
"""Characters of a number that is an id, at most: as many digits as Python reads."""
# Made once: json.dumps would make one for every row.
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)


@dataclass(frozen=True, slots=True)
class Record:
    """One row as its file holds it.

    line: 1-based line (JSONL, text) or record number (CSV, Parquet).
    fallback_id: the row's id when it brings none.
    read: gives the row's fields by name, or raises the RowError that keeps them from being read.
        A field that alone cannot be read is a RowError itself.
    raw: the row's bytes or a digest of them: what a Failure is recognised by in the next run.
        None where the fields stand for them.
    """

    line: int
    fallback_id: str
    read: Callable[[], Fields]
    raw: bytes | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where in its fields a row keeps what.

    template: builds the prompt from fields; when None, it is
    prompt_field: the field that holds the prompt; when None too, "prompt" or "messages" does.
    row_options: whether fields named like options are options (see `options.py`).
    columns: names of all columns of a table; a row of JSONL has names of its own.
    has_text_options: options are written as text (CSV).
    id_field: the field of the row's own id.
    unwrap: finds the fields in an envelope; the id stands outside of it.
    bare: prompts that are text are for the model as they stand (see Request).
    unwrapped_options: decoding options that `unwrap` has checked itself.
    """

    template: Template | None = None
    prompt_field: str | None = None
    row_options: RowOptions = "auto"
    columns: tuple[str, ...] = ()
    has_text_options: bool = False
    id_field: str = "id"
    unwrap: Callable[[Fields], Fields] | None = None
    bare: bool = False
    unwrapped_options: tuple[str, ...] = ()

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """The fields of which the prompt is made."""
        if self.template is not None:
            return self.template.names
        return ("prompt", "messages") if self.prompt_field is None else (self.prompt_field,)

    @property
    def option_columns(self) -> tuple[str, ...]:
        """Columns that are named like options and are not what the prompt is made of."""
        others = (name for name in self.columns if name not in self.prompt_names)
        return tuple(dict.fromkeys(name for name in others if is_option(name)))

    @property
    def unknown_columns(self) -> list[str]:
        """Columns of which neither id, prompt nor options are made."""
        made_of = {self.id_field, *self.prompt_names}
        return unknown_names([name for name in self.columns if name not in made_of])

    @property
    def names(self) -> tuple[str, ...]:
        """The fields of which the row is made, each once; of JSONL without its options."""
        return tuple(dict.fromkeys((self.id_field, *self.prompt_names, *self.option_columns)))


NO_CHARACTER = (
    "the row holds half a surrogate pair (such as \\ud800), which is no character; "
    "remove it, or write both halves"
)
TOO_DEEP = "the JSON is nested too deeply; flatten the row"


class Keys:
    """Names rows across runs, so that a finished row is known again wherever it stands.

    A key is the 128-bit BLAKE2b digest of what the row is, in hex. Rows without an id of their own
    can be equal: the second of them has "-2" after it, and so on. Counting them takes about 90
    bytes a row; should two of those 56-bit counters ever meet, a row only gets a needless "-2".
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def of_request(
        self, row_id: RowId | None, content: Content, options: Fields, bare: bool
    ) -> str:
        """Raises UnicodeEncodeError for text that is not Unicode (lone surrogates)."""
        # A number that JSON's own text would not keep is told apart from the text alike.
        named = {"number": row_id} if isinstance(row_id, NumberId) else row_id
        identity = canonical_json([named, content, options]).encode("utf-8")
        return self._key(identity, b"bare request" if bare else b"request", row_id)

    def of_failure(self, row_id: RowId | None, raw: bytes) -> str:
        return self._key(raw, b"failure", row_id)

    def _key(self, identity: bytes, kind: bytes, row_id: RowId | None) -> str:
        digest = blake2b(identity, digest_size=16, person=kind).digest()
        if row_id is not None:
            return digest.hex()
        counter = int.from_bytes(digest[:7], "big")
        occurrence = self._counts.get(counter, 0) + 1
        self._counts[counter] = occurrence
        return digest.hex() if occurrence == 1 else f"{digest.hex()}-{occurrence}"


def to_row(index: int, record: Record, layout: Layout, keys: Keys) -> Request | Failure:
    """`record`, the row at `index` of the input, as a row of the job. Raises nothing for a row."""
    row_id: RowId | None = None
    try:
        fields = record.read()
        row_id = _read_id(fields.get(layout.id_field))
        for value in fields.values():
            if isinstance(value, RowError):
                raise value
        if layout.unwrap is not None:
            fields = layout.unwrap(fields)
        content = _read_content(fields, layout)
        options = _read_options(fields, layout)
        options |= {name: fields[name] for name in layout.unwrapped_options if name in fields}
        bare = layout.bare and isinstance(content, str)
        key = keys.of_request(row_id, content, options, bare)
    except RowError as error:
        code, message = error.code, str(error)
    except UnicodeEncodeError:
        code = "invalid_unicode"
        message = NO_CHARACTER
    except RecursionError:
        code, message = "malformed_json", TOO_DEEP
    else:
        has_own_id = row_id is not None
        own_or_fallback = record.fallback_id if row_id is None else row_id
        return Request(index, own_or_fallback, record.line, content, options, key, bare, has_own_id)
    return Failure(
        index,
        code,
        message,
        id=record.fallback_id if row_id is None else row_id,
        line=record.line,
        key=keys.of_failure(row_id, _raw(record)),
        has_own_id=row_id is not None,
    )


def canonical_json(value: Any) -> str:
    """The same text for equal values; values JSON does not know are taken by their str()."""
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
        if isinstance(value, NumberId) and len(value) > _MAX_NUMBER_ID:
            raise RowError(
                "bad_id", f"the id must have at most {_MAX_NUMBER_ID:,} digits, got {len(value):,}"
            )
        if not value:
            raise RowError("bad_id", "the id must not be empty; give it a value or leave it out")
        value.encode("utf-8")  # UnicodeEncodeError: half a surrogate pair
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return NumberId(repr(value))
    if isinstance(value, Decimal) and value.is_finite():
        return NumberId(format(value, "f"))
    if isinstance(value, (date, time)):
        return str(value)
    raise RowError("bad_id", f"the id must be text, a number or a time, got {shown(value)}")


def _read_content(fields: Fields, layout: Layout) -> Content:
    if layout.template is not None:
        return layout.template.render(fields)
    if layout.prompt_field is not None:
        return _read_prompt(fields, layout.prompt_field)
    if fields.get("messages") is None:
        only_messages = "messages" in fields and "prompt" not in fields
        return _read_prompt(fields, "messages" if only_messages else "prompt")
    if fields.get("prompt") is not None:
        raise RowError("bad_prompt", "the row has both prompt and messages; keep one of them")
    return read_messages(fields["messages"])


def _read_options(fields: Fields, layout: Layout) -> dict[str, Any]:
    """Options among the fields of which the prompt is not made."""
    taken = {layout.id_field, *layout.prompt_names}
    left = {name: value for name, value in fields.items() if name not in taken}
    if layout.unwrap is not None:  # which has refused all that are no options
        return read_options(left)
    if layout.has_text_options:
        left = {name: from_text(name, value) for name, value in left.items()}
    unknown = layout.unknown_columns if layout.columns else unknown_names(left)
    return read_row_options(left, unknown, layout.row_options)


def _read_prompt(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if value is None and name in fields:
        raise RowError("missing_prompt", f"{shown(name)} is null; give the row a prompt")
    if value is None:
        raise RowError(
            "missing_prompt",
            f"the row has no {shown(name)}, only {_names(fields)}; "
            "give it a prompt or messages, or say which field to use with --prompt-column",
        )
    if not isinstance(value, str):
        raise RowError("bad_prompt", f"{shown(name)} must be text, got {shown(value)}")
    if not value.strip():
        raise RowError("empty_prompt", f"{shown(name)} is blank; give the row a prompt")
    return value


def _names(fields: Fields, most: int = 8) -> str:
    names = [shown(name) for name in list(fields)[:most]]
    return (", ".join(names) or "nothing") + (", ..." if len(fields) > most else "")
