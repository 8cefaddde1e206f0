"""A value in a table, as text, with its interval, and as a small bar; or large, on a tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

BAR = 100.0


@dataclass(frozen=True, slots=True)
class Bar:
    """Positions between 0 and BAR: the value, its interval, a mark for comparison."""

    at: float
    low: float
    high: float
    mark: float | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """sort: the value a column is sorted by, None sorts last; note: small text under the value."""

    text: str
    sort: float | None = None
    note: str = ""
    bar: Bar | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure that is shown large."""

    label: str
    value: str
    unit: str
    note: str


def scaled(whole: float) -> Callable[[float], float]:
    """Positions on a bar from 0 to `whole` > 0."""
    return lambda value: BAR * min(max(value / whole, 0.0), 1.0)
