"""Named fields of a row as text, for what reads labelled rows and not prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packhorse.inputs.rows import NO_CHARACTER, TOO_DEEP, Record
from packhorse.inputs.template import text_of
from packhorse.openai_format.row_errors import RowError


@dataclass(frozen=True, slots=True)
class FieldRow:
    """What one row holds under the names that were asked for.

    index: position in the input, from 0. line: as `Request.line`. values: text by name; a name is
    missing where the row has nothing under it (null, or no such field). names: of all fields that
    were read. fault: why the row, or a field of it, cannot be read; "" for none.
    """

    index: int
    line: int
    values: Mapping[str, str]
    names: tuple[str, ...]
    fault: str = ""


def to_fields(index: int, record: Record, names: Sequence[str]) -> FieldRow:
    """The fields of a record; numbers, dates and true or false become text."""
    try:
        fields = record.read()
    except RowError as error:
        return FieldRow(index, record.line, {}, (), str(error))
    except RecursionError:
        return FieldRow(index, record.line, {}, (), TOO_DEEP)
    values, fault = {}, ""
    for name in names:
        value = fields.get(name)
        try:
            if isinstance(value, RowError):
                raise value
            if value is not None:
                values[name] = text_of(value, name)
                values[name].encode("utf-8")
        except RowError as error:
            fault = fault or str(error)
        except UnicodeEncodeError:
            fault = fault or NO_CHARACTER
    return FieldRow(index, record.line, values, tuple(fields), fault)
