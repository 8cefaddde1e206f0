"""Geometry of the charts: learning curves, cost, cascade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from packhorse.assess.document import Assessment, Contestant
from packhorse.assess.metric_definitions import interval_text
from packhorse.reports.formats import number, percent
from packhorse.reports.html.axes import Axis, share_axis, spanning_axis
from packhorse.reports.html.label_placement import Box, Disc, Label, place_labels

VARIANTS = {"dummy": 5, "classic": 0, "model": 1, "cascade": 2, "embeddings": 3}
_LETTER = 6.6
_RADIUS = 5.0


@dataclass(frozen=True, slots=True)
class Layout:
    """Size of a drawing and its margins (left, top, right, bottom), in drawing units."""

    name: str
    width: float
    height: float
    margins: tuple[float, float, float, float]


WIDE = Layout("wide", 1000, 380, (52, 34, 24, 46))
NARROW = Layout("narrow", 360, 330, (42, 34, 12, 44))


@dataclass(frozen=True, slots=True)
class Curve:
    """A line; band: closed path of its interval, "" for none."""

    variant: int
    path: str
    band: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A point.

    Attributes:
        error: heights of the ends of its interval.
        ring: whether it is recommended.
        details: shown on hover.
        text: its name; label: its position, if there is room.
    """

    variant: int
    x: float
    y: float
    details: str
    error: tuple[float, float] | None = None
    ring: bool = False
    text: str = ""
    label: Label | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """A labelled horizontal line for comparison."""

    variant: int
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One drawing; title: for screen readers."""

    layout: Layout
    title: str
    x: Axis
    y: Axis
    x_title: str
    y_title: str
    curves: tuple[Curve, ...] = ()
    marks: tuple[Mark, ...] = ()
    levels: tuple[Level, ...] = ()
    legend: tuple[tuple[int, str], ...] = field(default=())


def learning_chart(assessment: Assessment, layout: Layout) -> Chart | None:
    """Return accuracy against labels per class, with the model's accuracy as a level."""
    if not assessment.curves:
        return None
    curves = assessment.curves
    points = [point for curve in curves for point in curve.points]
    level = curves[0].level
    low = min([level, *(point.low for point in points)])
    per_class = [float(point.per_class) for point in points]
    x, y = _axes(layout, min(per_class), max(per_class), low)
    lines, marks, legend = [], [], []
    for curve in curves:
        variant = VARIANTS["embeddings" if curve.name.startswith("embeddings") else "classic"]
        indices = [x.at(float(point.per_class)) for point in curve.points]
        lines.append(
            Curve(
                variant,
                _line(indices, [y.at(point.mean) for point in curve.points]),
                _band(
                    indices,
                    [y.at(point.low) for point in curve.points],
                    [y.at(point.high) for point in curve.points],
                ),
            )
        )
        legend.append((variant, curve.title))
        marks += [
            Mark(
                variant,
                x.at(float(point.per_class)),
                y.at(point.mean),
                f"{curve.title}\n{point.per_class:,} labels per class, {point.rows:,} in all\n"
                f"{percent(point.mean)} ({percent(point.low)}–{percent(point.high)})",
            )
            for point in curve.points
        ]
    return Chart(
        layout,
        "Accuracy against labels per class",
        x,
        y,
        "labels per class",
        "accuracy",
        tuple(lines),
        tuple(marks),
        (Level(VARIANTS["model"], y.at(level), f"the language model, {percent(level)}"),),
        tuple(legend),
    )


def cost_chart(assessment: Assessment, layout: Layout) -> Chart | None:
    """Return accuracy against core-seconds per 1,000 rows, one point per contestant."""
    costly = [each for each in assessment.contestants if each.costs is not None]
    if not costly:
        return None
    work = [each.costs.core_seconds for each in costly if each.costs is not None]
    lows = [each.shared.accuracy.low or 0.0 for each in costly]
    dummies = [each for each in assessment.contestants if each.name == "majority"]
    floor = dummies[0].shared.accuracy.value if dummies else 1.0
    x, y = _axes(layout, max(min(work), 1e-3), max(work), min([floor, *lows]))
    marks = [_contestant_mark(each, x, y) for each in costly]
    cascade = assessment.cascade
    if cascade is not None and 0 < cascade.point.share < 1:
        point = cascade.point
        marks.append(
            Mark(
                VARIANTS["cascade"],
                x.at(point.core_seconds),
                y.at(point.accuracy.value),
                f"cascade\n{percent(point.accuracy.value)} ({interval_text(point.accuracy)})\n"
                f"{number(point.core_seconds)} core-seconds per 1,000 rows",
                ring=assessment.verdict.winner == "cascade",
                text="cascade",
            )
        )
    marks = [
        Mark(
            mark.variant, mark.x, mark.y, mark.details, mark.error,
            mark.ring or each == assessment.verdict.winner, mark.text,
        )
        for mark, each in zip(marks, [*(c.name for c in costly), "cascade"], strict=False)
    ]  # fmt: skip
    return Chart(
        layout,
        "Accuracy against work",
        x,
        y,
        "core-seconds per 1,000 rows",
        "accuracy",
        marks=_labelled(marks, layout),
        levels=(Level(VARIANTS["dummy"], y.at(floor), "always the most frequent label"),),
    )


def _contestant_mark(contestant: Contestant, x: Axis, y: Axis) -> Mark:
    assert contestant.costs is not None
    accuracy = contestant.shared.accuracy
    error = None
    if accuracy.low is not None and accuracy.high is not None:
        error = (y.at(accuracy.low), y.at(accuracy.high))
    return Mark(
        VARIANTS[contestant.kind],
        x.at(contestant.costs.core_seconds),
        y.at(accuracy.value),
        f"{contestant.title}\n{percent(accuracy.value)} ({interval_text(accuracy)})\n"
        f"{number(contestant.costs.core_seconds)} core-seconds per 1,000 rows",
        error,
        text=contestant.name,
    )


def cascade_chart(assessment: Assessment, layout: Layout) -> Chart | None:
    """Return accuracy against the share of rows for the model."""
    cascade = assessment.cascade
    if cascade is None or len(cascade.points) < 3:
        return None
    points = cascade.points
    known = [point.accuracy for point in points]
    x = Axis(
        0.0, 1.0, layout.margins[0], layout.width - layout.margins[2], False,
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    )  # fmt: skip
    y = _accuracy_axis(layout, min(each.low or 0.0 for each in known))
    indices = [x.at(point.share) for point in points]
    marks = [
        Mark(
            VARIANTS["cascade"],
            index,
            y.at(point.accuracy.value),
            f"threshold {point.threshold:.3f}\n{percent(point.share)} of rows to the model\n"
            f"{percent(point.accuracy.value)} ({interval_text(point.accuracy)})\n"
            f"{number(point.core_seconds)} core-seconds per 1,000 rows",
            ring=point is cascade.point,
        )
        for index, point in zip(indices, points, strict=True)
    ]
    curve = Curve(
        VARIANTS["cascade"],
        _line(indices, [mark.y for mark in marks]),
        _band(
            indices,
            [y.at(each.low or 0.0) for each in known],
            [y.at(each.high or 1) for each in known],
        ),
    )
    return Chart(
        layout,
        "Accuracy against the share of rows that goes to the language model",
        x,
        y,
        "share of rows to the language model",
        "accuracy",
        (curve,),
        tuple(marks),
    )


def _axes(layout: Layout, low: float, high: float, lowest_share: float) -> tuple[Axis, Axis]:
    left, _, right, _ = layout.margins
    x = spanning_axis(low, high, left, layout.width - right, 5 if layout is NARROW else 8)
    return x, _accuracy_axis(layout, lowest_share)


def _accuracy_axis(layout: Layout, lowest: float) -> Axis:
    _, top, _, bottom = layout.margins
    return share_axis(max(lowest, 0.0), layout.height - bottom, top)


def _line(xs: Sequence[float], ys: Sequence[float]) -> str:
    corners = [f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True)]
    return "M" + "L".join(corners)


def _band(xs: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> str:
    there = [f"{x:.1f} {y:.1f}" for x, y in zip(xs, highs, strict=True)]
    back = [f"{x:.1f} {y:.1f}" for x, y in zip(xs[::-1], lows[::-1], strict=True)]
    return "M" + "L".join(there + back) + "z"


def _labelled(marks: Sequence[Mark], layout: Layout) -> tuple[Mark, ...]:
    """Return the marks with names where there is room."""
    left, top, _, bottom = layout.margins
    inside = Box(left + 2, top, layout.width - 2, layout.height - bottom - 2)
    labels = place_labels(
        [Disc(mark.x, mark.y, _RADIUS) for mark in marks],
        [len(mark.text) * _LETTER for mark in marks],
        inside,
    )
    return tuple(
        Mark(mark.variant, mark.x, mark.y, mark.details, mark.error, mark.ring, mark.text, label)
        for mark, label in zip(marks, labels, strict=True)
    )
