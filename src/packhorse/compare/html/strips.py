"""Geometry of the latency strip plot: one strip of dots per trial on a common axis."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.compare.document import Comparison, Trial
from packhorse.compare.report_values import median, variant_of
from packhorse.reports.formats import number
from packhorse.reports.html.axes import Axis, spanning_axis

_MAX_DOTS = 400
_GOLDEN = 0.618033988749895


@dataclass(frozen=True, slots=True)
class Strip:
    """One trial.

    Attributes:
        dots: path of its rows over all repeats.
        middle: its height in the drawing.
        p50: position of the tick; None if it was not measured.
        p95: as p50.
        figures: both as text.
    """

    name: str
    variant: int
    middle: float
    dots: str
    p50: float | None
    p95: float | None
    figures: str


@dataclass(frozen=True, slots=True)
class Strips:
    """The drawing; labels_above: names are above the strips, not beside them."""

    name: str
    width: float
    height: float
    x: Axis
    strips: tuple[Strip, ...]
    labels_above: bool


def latency_strips(comparison: Comparison, *, narrow: bool) -> Strips | None:
    """Return the drawing; None if no latency is known."""
    known = [(trial, _latencies(trial)) for trial in comparison.trials]
    drawn = [(trial, values) for trial, values in known if values]
    if not drawn:
        return None
    width, left, right, pitch = (360.0, 8.0, 12.0, 44.0) if narrow else (1000.0, 262.0, 20.0, 27.0)
    low = min(values[0] for _, values in drawn)
    high = max(values[-1] for _, values in drawn)
    x = spanning_axis(low, high, left, width - right, 4 if narrow else 8)
    strips = tuple(
        _strip(
            trial,
            values,
            variant_of(comparison, trial),
            x,
            (index + (0.7 if narrow else 0.5)) * pitch + 4,
        )
        for index, (trial, values) in enumerate(drawn)
    )
    return Strips("narrow" if narrow else "wide", width, len(drawn) * pitch + 50, x, strips, narrow)


def _latencies(trial: Trial) -> list[float]:
    """Return the sorted latencies, thinned evenly to _MAX_DOTS including the extremes."""
    every = [value for repeat in trial.repeats for value in repeat.latencies]
    values = sorted(value for value in every if value is not None and value > 0)
    if len(values) <= _MAX_DOTS:
        return values
    step = (len(values) - 1) / (_MAX_DOTS - 1)
    return [values[round(index * step)] for index in range(_MAX_DOTS)]


def _strip(trial: Trial, values: list[float], variant: int, x: Axis, middle: float) -> Strip:
    dots = "".join(
        f"M{x.at(value):.1f} {middle + (index * _GOLDEN % 1 - 0.5) * 14:.1f}h0"
        for index, value in enumerate(values)
    )
    p50, p95 = median(trial, "latency_p50"), median(trial, "latency_p95")
    parts = [f"p50 {number(p50)} s" if p50 else "", f"p95 {number(p95)} s" if p95 else ""]
    return Strip(
        name=trial.name if trial.status == "ok" else f"{trial.name} (failed)",
        variant=variant,
        middle=middle,
        dots=dots,
        p50=x.at(p50) if p50 else None,
        p95=x.at(p95) if p95 else None,
        figures=", ".join(part for part in parts if part),
    )
