"""Decoding options a row brings itself, checked for type and range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from packhorse.sources.faults import RowError, shown

_MAX_INT32 = 2**31 - 1
_MAX_STOPS = 16


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    allowed: str
    fits: Callable[[Any], bool]
    keep: Callable[[Any], Any]


def _whole(name: str, low: int, high: int) -> _Rule:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return _Rule(name, f"an integer from {low} to {high}", fits, int)


def _number(name: str, allowed: str, in_range: Callable[[float], bool]) -> _Rule:
    def fits(value: Any) -> bool:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and in_range(value)

    return _Rule(name, f"a number {allowed}", fits, float)


def _is_stop(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= _MAX_STOPS and all(isinstance(each, str) and each for each in value)
    return isinstance(value, str) and bool(value)


def _stops(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


_MAX_NEW_TOKENS = _whole("max_new_tokens", 1, _MAX_INT32)
_RULES: dict[str, _Rule] = {
    "max_new_tokens": _MAX_NEW_TOKENS,
    "max_tokens": _MAX_NEW_TOKENS,
    "max_completion_tokens": _MAX_NEW_TOKENS,
    "temperature": _number("temperature", "from 0 to 100", lambda value: 0 <= value <= 100),
    "top_p": _number("top_p", "above 0 and at most 1", lambda value: 0 < value <= 1),
    "top_k": _whole("top_k", 0, _MAX_INT32),
    "seed": _whole("seed", 0, 2**63 - 1),
    "stop": _Rule(
        "stop",
        f"text or a list of at most {_MAX_STOPS} texts, none of them empty",
        _is_stop,
        _stops,
    ),
}
OPTION_FIELDS = frozenset(_RULES)


def read_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The options among `fields`, by the names and with the types of Decoding; null is unset.

    Raises RowError `bad_option` for a wrong type or range, or two names of one option that differ.
    """
    options: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    for field, rule in _RULES.items():
        value = fields.get(field)
        if value is None:
            continue
        if not rule.fits(value):
            raise RowError("bad_option", f"{field} must be {rule.allowed}, got {shown(value)}")
        kept = rule.keep(value)
        other = given_as.setdefault(rule.name, field)
        if options.setdefault(rule.name, kept) != kept:
            raise RowError(
                "bad_option",
                f"{field} is {shown(value)}, but {other} is {shown(fields[other])}; keep one",
            )
    return options
