"""Named fields of a row as text, for commands that read labelled rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packhorse.inputs.rows import LONE_SURROGATE, NESTED_TOO_DEEPLY, Record
from packhorse.inputs.template import format_field
from packhorse.openai_format.row_errors import RowError


@dataclass(frozen=True, slots=True)
class FieldRow:
    """Values of the requested fields of one row.

    Attributes:
        index: Position in the input, from 0.
        line: As `Request.line`.
        values: Text by name. A name is missing if the row has no such field or it is null.
        names: Names of all fields that were read.
        fault: Why the row, or a field of it, cannot be read; "" if it can.
    """

    index: int
    line: int
    values: Mapping[str, str]
    names: tuple[str, ...]
    fault: str = ""


def parse_fields(index: int, record: Record, names: Sequence[str]) -> FieldRow:
    """Return the named fields of a record; numbers, dates and booleans become text."""
    try:
        fields = record.read()
    except RowError as error:
        return FieldRow(index, record.line, {}, (), str(error))
    except RecursionError:
        return FieldRow(index, record.line, {}, (), NESTED_TOO_DEEPLY)
    values, fault = {}, ""
    for name in names:
        value = fields.get(name)
        try:
            if isinstance(value, RowError):
                raise value
            if value is not None:
                values[name] = format_field(value, name)
                values[name].encode("utf-8")
        except RowError as error:
            fault = fault or str(error)
        except UnicodeEncodeError:
            fault = fault or LONE_SURROGATE
    return FieldRow(index, record.line, values, tuple(fields), fault)
