"""A value in a table: as text, with its interval, and as a small bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from packhorse.compare.document import Estimate, Spread
from packhorse.compare.figures import bounds, interval
from packhorse.compare.measures import ABSENT, Format, finite

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


def barred(
    value: Spread | Estimate,
    form: Format,
    at: Callable[[float], float],
    *,
    around: Format | None = None,
    mark: float | None = None,
) -> Cell:
    """The value with its interval as text and as a bar; a dash when it is no number.

    at: from values to positions between 0 and BAR. around: form of the interval, if another.
    """
    middle = finite(value.median if isinstance(value, Spread) else value.mean)
    if middle is None:
        return Cell(ABSENT)
    low, high = bounds(value) or (middle, middle)
    bar = Bar(at(middle), at(low), at(high), mark)
    return Cell(form(middle), middle, interval(value, around or form), bar)


def scaled(whole: float) -> Callable[[float], float]:
    """Positions on a bar from 0 to `whole` > 0."""
    return lambda value: BAR * min(max(value / whole, 0.0), 1.0)
