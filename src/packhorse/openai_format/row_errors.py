"""The error of one row, and how its message shows a value."""

from __future__ import annotations

from typing import Any

_MAX_CHARACTERS = 40


class RowError(Exception):
    """Why a row cannot be used, and what to do. It becomes the row's Failure and ends no job.

    Attributes:
        code: Code of the Failure.
        value: The bytes of a field that are not text, if it is because of them.
    """

    def __init__(self, code: str, message: str, value: bytes | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.value = value


def format_value(value: Any) -> str:
    """Return `value` for a message: short, on one line, printable, in JSON's notation."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        # Cut before repr, which escapes unprintable characters and may be ten times as long.
        return repr(value[:_MAX_CHARACTERS] + "..." * (len(value) > _MAX_CHARACTERS))
    if isinstance(value, (int, float)):
        text = repr(value)
        return text[:_MAX_CHARACTERS] + "..." * (len(text) > _MAX_CHARACTERS)
    return type(value).__name__
