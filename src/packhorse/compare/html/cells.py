"""Render a figure of a comparison as a table cell."""

from __future__ import annotations

from collections.abc import Callable

from packhorse.compare.document import Estimate, Spread
from packhorse.compare.report_values import bounds, interval
from packhorse.reports.formats import ABSENT, Format, finite
from packhorse.reports.html.cells import Bar, Cell


def bar_cell(
    value: Spread | Estimate,
    form: Format,
    at: Callable[[float], float],
    *,
    around: Format | None = None,
    mark: float | None = None,
) -> Cell:
    """Return the value with its interval as text and as a bar; a dash if it is not finite.

    Args:
        at: maps values to positions between 0 and BAR.
        around: format of the interval, if it differs.
    """
    middle = finite(value.median if isinstance(value, Spread) else value.mean)
    if middle is None:
        return Cell(ABSENT)
    low, high = bounds(value) or (middle, middle)
    bar = Bar(at(middle), at(low), at(high), mark)
    return Cell(form(middle), middle, interval(value, around or form), bar)
