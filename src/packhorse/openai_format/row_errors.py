"""What can be wrong with one row, and how its messages show a value."""

from __future__ import annotations

from typing import Any

_SHOWN_CHARACTERS = 40


class RowError(Exception):
    """Why a row cannot be used, and what to do; it becomes the row's Failure, never the job's end.

    code: the Failure's code.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def shown(value: Any) -> str:
    """`value` as a message shows it: short, on one line, printable, as JSON has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        # Cut before repr, which may be ten times as long; repr escapes what cannot be printed.
        return repr(value[:_SHOWN_CHARACTERS] + "..." * (len(value) > _SHOWN_CHARACTERS))
    if isinstance(value, (int, float)):
        text = repr(value)
        return text[:_SHOWN_CHARACTERS] + "..." * (len(text) > _SHOWN_CHARACTERS)
    return type(value).__name__
