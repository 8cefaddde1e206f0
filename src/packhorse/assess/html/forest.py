"""Geometry of the forest plot: accuracies on the same rows with their intervals."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.assess.document import Assessment, Contestant
from packhorse.assess.html.charts import VARIANTS
from packhorse.assess.metric_definitions import interval_text
from packhorse.reports.formats import percent
from packhorse.reports.html.axes import Axis, share_axis


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant; y: height, at, low, high: positions of accuracy and interval."""

    title: str
    variant: int
    y: float
    at: float
    low: float
    high: float
    figures: str
    finalist: bool


@dataclass(frozen=True, slots=True)
class Forest:
    """The drawing; floor: position of the most frequent label, titles_above: names above their
    rows.
    """

    name: str
    width: float
    height: float
    x: Axis
    rows: tuple[Row, ...]
    floor: float
    titles_above: bool


def forest(assessment: Assessment, *, narrow: bool) -> Forest:
    """Return the drawing in the order of the contestants."""
    width, left, right, pitch = (360.0, 8.0, 14.0, 42.0) if narrow else (1000.0, 330.0, 152.0, 28.0)
    known = assessment.contestants
    lowest = min(each.shared.accuracy.low or 0.0 for each in known)
    x = share_axis(lowest, left, width - right)
    rows = tuple(
        _row(each, x, (index + (0.72 if narrow else 0.5)) * pitch + 6)
        for index, each in enumerate(known)
    )
    floor = assessment.contestant("majority").shared.accuracy.value
    return Forest(
        "narrow" if narrow else "wide",
        width,
        len(known) * pitch + 50,
        x,
        rows,
        x.at(floor),
        narrow,
    )


def _row(contestant: Contestant, x: Axis, y: float) -> Row:
    accuracy = contestant.shared.accuracy
    low = accuracy.value if accuracy.low is None else accuracy.low
    high = accuracy.value if accuracy.high is None else accuracy.high
    around = interval_text(accuracy)
    return Row(
        title=contestant.title,
        variant=VARIANTS[contestant.kind],
        y=y,
        at=x.at(accuracy.value),
        low=x.at(low),
        high=x.at(high),
        figures=f"{percent(accuracy.value)} ({around})" if around else percent(accuracy.value),
        finalist=contestant.finalist,
    )
