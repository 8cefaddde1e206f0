"""Values of a page: table cells with intervals and bars, and large tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

BAR = 100.0


@dataclass(frozen=True, slots=True)
class Bar:
    """Positions between 0 and BAR: value, interval, a mark for comparison."""

    at: float
    low: float
    high: float
    mark: float | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """A table cell.

    Attributes:
        sort: the value a column is sorted by; None sorts last.
        note: small text under the value.
    """

    text: str
    sort: float | None = None
    note: str = ""
    bar: Bar | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure in large type."""

    label: str
    value: str
    unit: str
    note: str


def scaled(whole: float) -> Callable[[float], float]:
    """Return a map to positions on a bar from 0 to `whole` > 0."""
    return lambda value: BAR * min(max(value / whole, 0.0), 1.0)
