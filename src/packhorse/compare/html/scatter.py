"""Geometry of the trade-off chart: accuracy against throughput; marker size is memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from packhorse.compare.document import Comparison, Trial
from packhorse.compare.metric_definitions import Metric, find_metric
from packhorse.compare.report_values import bounds, mean, median, short_name, variant_of
from packhorse.reports.formats import percent
from packhorse.reports.html.axes import Axis, share_axis, spanning_axis
from packhorse.reports.html.label_placement import Box, Disc, Label, place_labels
from packhorse.reports.html.page import COLOURS, RING

ACCURACIES = ("matched_prefix", "rows_identical", "cosine")
_SMALLEST_SHARE = 0.4
_ABOVE = 78.0
_PLAIN, _BOLD = 6.5, 7.0  # mean letter width


@dataclass(frozen=True, slots=True)
class Layout:
    """Size of a drawing and its margins (left, top, right, bottom) in drawing units.

    Attributes:
        largest: radius of the largest marker.
        label_all: whether all markers get a name or only the important ones.
    """

    name: str
    width: float
    height: float
    margins: tuple[float, float, float, float]
    largest: float
    label_all: bool


WIDE = Layout("wide", 1000, 470, (56, 12, 20, 46), 11.0, True)
NARROW = Layout("narrow", 360, 400, (42, 12, 12, 44), 7.5, False)


@dataclass(frozen=True, slots=True)
class Point:
    """A trial as drawn.

    Attributes:
        error_x: ends of its interval; None without.
        error_y: as error_x.
        label: see `Label`.
        details: shown on hover and read by screen readers.
    """

    trial: Trial
    variant: int
    x: float
    y: float
    radius: float
    shape: str
    error_x: tuple[float, float] | None
    error_y: tuple[float, float] | None
    pareto: bool
    knee: bool
    recommended: bool
    label: Label | None
    text: str
    details: str


@dataclass(frozen=True, slots=True)
class Scatter:
    """One drawing.

    Attributes:
        front: path of the Pareto front.
        floor: height of unrelated texts, for the cosine.
    """

    measure: Metric
    layout: Layout
    x: Axis
    y: Axis
    points: tuple[Point, ...]
    front: str
    floor: float | None

    def accuracy_text(self, value: float) -> str:
        """Return a tick label of y: 0.25 or 25%."""
        return f"{100 * value:g}%" if self.measure.format is percent else f"{value:g}"


def scatters(comparison: Comparison, layout: Layout) -> list[Scatter]:
    """Return a drawing for each accuracy that was measured, matched prefix first."""
    found = []
    for name in ACCURACIES:
        trials = drawable(comparison, name)
        if trials:
            found.append(_scatter(comparison, trials, find_metric(name), layout))
    return found


def drawable(comparison: Comparison, accuracy: str) -> list[Trial]:
    """Return the trials that ended well with a throughput and this accuracy."""
    return [
        trial
        for trial in comparison.trials
        if trial.status == "ok"
        and (median(trial, "rows_per_second") or 0) > 0
        and mean(trial, accuracy) is not None
    ]


def pareto_trials(trials: Sequence[Trial], accuracy: str) -> list[Trial]:
    """Return the trials that no other beats in both throughput and this accuracy, slowest first."""
    ordered = sorted(trials, key=lambda t: (-_value(t, accuracy)[0], -_value(t, accuracy)[1]))
    kept: list[Trial] = []
    for trial in ordered:
        if not kept or _value(trial, accuracy)[1] > _value(kept[-1], accuracy)[1]:
            kept.append(trial)
    return kept[::-1]


def outline(variant: int, radius: float) -> str:
    """Return the path of a marker around (0, 0) with the area of a circle of this radius.

    After COLOURS variants the colours repeat with other shapes.
    """
    shape = (variant + variant // COLOURS) % 6
    if shape == 0:
        r = f"{radius:.2f}"
        return f"M-{r} 0a{r} {r} 0 1 0 {2 * radius:.2f} 0a{r} {r} 0 1 0 -{2 * radius:.2f} 0z"
    corners, turn = ((4, 45.0), (4, 0.0), (3, -90.0), (3, 90.0), (6, 0.0))[shape - 1]
    reach = radius * math.sqrt(2 * math.pi / (corners * math.sin(2 * math.pi / corners)))
    angles = [math.radians(turn + 360 * corner / corners) for corner in range(corners)]
    ends = [f"{reach * math.cos(angle):.2f} {reach * math.sin(angle):.2f}" for angle in angles]
    return f"M{'L'.join(ends)}z"


def radius_of(peak_bytes: float | None, largest_bytes: float, largest: float) -> float:
    """Return a radius whose area is proportional to memory, down to a visible minimum."""
    share = peak_bytes / largest_bytes if peak_bytes and largest_bytes else 0.0
    return largest * max(_SMALLEST_SHARE, math.sqrt(share))


def largest_memory(comparison: Comparison) -> float:
    return max((median(t, "peak_memory_bytes") or 0.0 for t in comparison.trials), default=0.0)


def _scatter(comparison: Comparison, trials: list[Trial], item: Metric, layout: Layout) -> Scatter:
    left, top, right, bottom = layout.margins
    speeds = [value for trial in trials for value in _around(trial, "rows_per_second") if value > 0]
    lows = [value for trial in trials for value in _around(trial, item.name)]
    x = spanning_axis(min(speeds), max(speeds), left, layout.width - right)
    y = share_axis(max(min(lows), 0.0), layout.height - bottom, top + _ABOVE)
    best = pareto_trials(trials, item.name)
    if item.name == ACCURACIES[0]:
        named = [trial for trial in trials if trial.name in comparison.pareto]
        best = sorted(named, key=lambda trial: _value(trial, item.name)[0])
    floors = [trial.quality_notes.get("cosine_floor") for trial in trials]
    floor = min((value for value in floors if value is not None), default=None)
    return Scatter(
        measure=item,
        layout=layout,
        x=x,
        y=y,
        points=_points(comparison, trials, item, (x, y), layout, best),
        front=_front_path([_position(t, item.name, x, y) for t in best], left, y.start),
        floor=y.at(floor) if item.name == "cosine" and floor and floor > y.low else None,
    )


def _points(
    comparison: Comparison,
    trials: list[Trial],
    item: Metric,
    axes: tuple[Axis, Axis],
    layout: Layout,
    best: list[Trial],
) -> tuple[Point, ...]:
    most = largest_memory(comparison)
    recommended = comparison.recommendation.trial
    radii = [
        radius_of(median(trial, "peak_memory_bytes"), most, layout.largest) for trial in trials
    ]
    discs = [
        Disc(*_position(t, item.name, *axes), radius + (RING if t.name == recommended else 0))
        for t, radius in zip(trials, radii, strict=True)
    ]
    texts = [_label_text(comparison, trial) for trial in trials]
    widths = [
        len(text) * (_BOLD if trial.name in (comparison.knee, recommended) else _PLAIN)
        for text, trial in zip(texts, trials, strict=True)
    ]
    important = [
        index
        for index, trial in enumerate(trials)
        if trial in best or trial.name in (comparison.knee, recommended)
    ]
    important.sort(key=lambda index: trials[index].name != recommended)
    left, top, _, bottom = layout.margins
    corners = [_position(trial, item.name, *axes) for trial in best]
    inside = Box(left + 2, top, layout.width - 2, layout.height - bottom - 2)
    labels = place_labels(discs, widths, inside, important, _lines(corners, left, axes[1].start))
    return tuple(
        Point(
            trial=trial,
            variant=variant_of(comparison, trial),
            x=discs[index].x,
            y=discs[index].y,
            radius=radii[index],
            shape=outline(variant_of(comparison, trial), radii[index]),
            error_x=_ends(trial, "rows_per_second", axes[0]),
            error_y=_ends(trial, item.name, axes[1]),
            pareto=trial in best,
            knee=trial.name == comparison.knee,
            recommended=trial.name == recommended,
            label=labels[index] if layout.label_all or index in important else None,
            text=texts[index],
            details=_details(trial, item),
        )
        for index, trial in enumerate(trials)
    )


def _label_text(comparison: Comparison, trial: Trial) -> str:
    star = "★ " if trial.name == comparison.recommendation.trial else ""
    knee = " (knee)" if trial.name == comparison.knee else ""
    return f"{star}{short_name(trial)}{knee}"


def _details(trial: Trial, item: Metric) -> str:
    """Return lines for the tooltip and for screen readers."""
    lines = [trial.name]
    for name in ("rows_per_second", "latency_p95", "peak_memory_bytes"):
        value, metric = median(trial, name), find_metric(name)
        if value is not None:
            lines.append(f"{metric.label} {metric.format(value)} {metric.unit}")
    value = mean(trial, item.name)
    if value is not None:
        ends = bounds(trial.quality.get(item.name))
        around = f" ({item.format(ends[0])}–{item.format(ends[1])})" if ends else ""
        lines.append(f"{item.label} {item.format(value)}{around}")
    return "\n".join(lines)


def _value(trial: Trial, accuracy: str) -> tuple[float, float]:
    return median(trial, "rows_per_second") or 0.0, mean(trial, accuracy) or 0.0


def _position(trial: Trial, accuracy: str, x: Axis, y: Axis) -> tuple[float, float]:
    speed, agreement = _value(trial, accuracy)
    return x.at(speed), y.at(agreement)


def _around(trial: Trial, name: str) -> list[float]:
    """Return the figure and the non-negative ends of its interval."""
    spread = trial.speed.get(name) or trial.quality.get(name)
    middle = mean(trial, name) if name in trial.quality else median(trial, name)
    ends = bounds(spread) or ()
    return [value for value in (middle, *ends) if value is not None and value >= 0]


def _ends(trial: Trial, name: str, axis: Axis) -> tuple[float, float] | None:
    ends = bounds(trial.speed.get(name) or trial.quality.get(name))
    return (axis.at(ends[0]), axis.at(ends[1])) if ends else None


def _front_path(corners: Sequence[tuple[float, float]], left: float, bottom: float) -> str:
    """Return the outline of the area that the front dominates."""
    if not corners:
        return ""
    path = f"M{left:.1f} {corners[0][1]:.1f}"
    for index, (x, _) in enumerate(corners):
        below = corners[index + 1][1] if index + 1 < len(corners) else bottom
        path += f"H{x:.1f}V{below:.1f}"
    return path


def _lines(corners: Sequence[tuple[float, float]], left: float, bottom: float) -> list[Box]:
    """Return the steps of the front as thin boxes."""
    boxes, start = [], left
    for index, (x, y) in enumerate(corners):
        below = corners[index + 1][1] if index + 1 < len(corners) else bottom
        boxes += [Box(start, y - 1, x, y + 1), Box(x - 1, y, x + 1, below)]
        start = x
    return boxes
