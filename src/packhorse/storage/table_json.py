"""Write the values of a table as JSON, also those that JSON has no type for.

decimal.Decimal, NumberId   a number with all digits
date, time, datetime, UUID  text: 2024-01-02, 2024-01-02 03:04:05+00:00
timedelta                   a number: seconds
bytes                       text; {"base64": "..."} if they are not UTF-8
NaN, infinity               null
"""

from __future__ import annotations

import math
import re
from base64 import b64encode
from datetime import date, time, timedelta
from decimal import Decimal
from secrets import token_hex
from typing import Any
from uuid import UUID

from packhorse.data import NumberId
from packhorse.storage.atomic_files import json_bytes

# Text that stands for a number whose digits follow, until the JSON around it is written.
_MARK = f"\ue000{token_hex(8)}:"
_MARK_BYTES = _MARK.encode()
_MARKED = re.compile(b'"' + _MARK_BYTES + b'([^"]*)"')


def json_value(value: Any) -> Any:
    """Return `value` with what JSON has no type for replaced, at any depth; for `json_row`."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return f"{_MARK}{value}" if isinstance(value, NumberId) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): json_value(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(each) for each in value]
    if isinstance(value, Decimal):
        return f"{_MARK}{value:f}" if value.is_finite() else None
    if isinstance(value, bytes):
        return _text_of(value)
    if isinstance(value, timedelta):
        nanoseconds = getattr(value, "nanoseconds", 0)  # of pandas
        seconds = Decimal(value.days * 86_400 + value.seconds)
        fraction = Decimal(value.microseconds * 1000 + nanoseconds) / 10**9
        return f"{_MARK}{(seconds + fraction).normalize():f}"
    if isinstance(value, (date, time, UUID)):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def json_row(document: dict[str, Any], *, exact: bool = False) -> bytes:
    """Return `document` as one line of JSON.

    Args:
        document: Any values that `json_value` takes.
        exact: The document contains a NumberId, which otherwise is written as text.
    """
    if not exact:
        try:
            line = json_bytes(document)
        except (TypeError, ValueError):
            exact = True
    if exact:
        line = json_bytes(json_value(document))
    return _MARKED.sub(rb"\1", line) if _MARK_BYTES in line else line


def json_text(value: Any) -> str:
    """Return one value as JSON."""
    return json_row({"": value}, exact=True)[len(b'{"": ') : -len(b"}\n")].decode()


def cell_text(value: Any) -> str | int | float | None:
    """Return a value for a cell of CSV: lists and objects as JSON, null as an empty cell."""
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    if isinstance(value, (date, time, timedelta, Decimal, bytes, UUID)):
        value = json_value(value)
    return value.removeprefix(_MARK) if isinstance(value, str) else json_text(value)


def _text_of(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": b64encode(value).decode()}
