"""Content of the upper part of the page: tiles, legends, tables of trials."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from packhorse.compare.document import Comparison, Trial
from packhorse.compare.html.cells import bar_cell
from packhorse.compare.html.scatter import WIDE, largest_memory, outline, radius_of
from packhorse.compare.metric_definitions import (
    QUALITY,
    SPEED,
    SPEED_UP,
    WASTED,
    DerivedMetric,
    Metric,
    QualityMetric,
    find_metric,
    measured_metrics,
)
from packhorse.compare.report_values import (
    baseline,
    interval,
    marks,
    median,
    speed_up,
    variant_of,
    variants,
    wasted_share,
)
from packhorse.reports.formats import ABSENT, finite, gigabytes, number, score, show, times
from packhorse.reports.html.cells import Cell, Tile, scaled


@dataclass(frozen=True, slots=True)
class Line:
    """A trial in a table.

    Attributes:
        ran: compute type, if it differs from the name of the trial.
        footnotes: numbers of its flags.
        reason: why the trial failed; a failed trial has no cells.
    """

    name: str
    variant: int
    marks: str
    ran: str
    footnotes: str
    reason: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    columns: tuple[Metric, ...]
    lines: tuple[Line, ...]
    footnotes: tuple[tuple[str, str, str], ...] = ()
    """Number, trial, text."""
    caption: str = ""


def legend(comparison: Comparison) -> list[tuple[int, str, str]]:
    """Return (variant, outline, name) of each engine and format."""
    return [
        (index, outline(index, 6.0), f"{engine} {quantization}")
        for index, (engine, quantization) in enumerate(variants(comparison))
    ]


def size_legend(comparison: Comparison) -> list[tuple[float, str]]:
    """Return (radius, memory) of a small and a large marker."""
    known = [median(trial, "peak_memory_bytes") or 0.0 for trial in comparison.trials]
    sizes = sorted({value for value in known if value})
    ends = dict.fromkeys([sizes[0], sizes[-1]]) if sizes else {}
    return [
        (radius_of(size, largest_memory(comparison), WIDE.largest), gigabytes(size))
        for size in ends
    ]


def tiles(comparison: Comparison) -> list[Tile]:
    """Return four figures of the recommended trial beside those of the baseline."""
    chosen = next((t for t in comparison.trials if t.name == comparison.recommendation.trial), None)
    base = baseline(comparison)
    if chosen is None:
        return []
    faster = speed_up(comparison, chosen)
    over = f"{times(faster)} that of {base.name}" if faster and base and base is not chosen else ""
    found = [Tile("Throughput", show(median(chosen, "rows_per_second"), number), "rows/s", over)]
    for name in ("latency_p95", "peak_memory_bytes"):
        item = find_metric(name)
        other = median(base, name) if base and base is not chosen else None
        note = (
            f"{base.name}: {item.format(other)} {item.unit}" if base and other is not None else ""
        )
        found.append(Tile(item.label, show(median(chosen, name), item.format), item.unit, note))
    prefix = chosen.quality.get("matched_prefix")
    if prefix is not None:
        around = interval(prefix, score)
        found.append(
            Tile("Matched prefix", show(prefix.mean, score), "", around and f"95%: {around}")
        )
    return found


def trial_table(comparison: Comparison) -> Table:
    """Return speed and memory of every trial."""
    base = baseline(comparison)
    wasteful = any(wasted_share(trial) is not None for trial in comparison.trials)
    columns: list[Metric] = [SPEED_UP]
    columns += [item for item in measured_metrics(comparison, SPEED) if item.html != "hidden"]
    columns += [WASTED] if wasteful else []
    lines = [
        _line(comparison, trial, [_speed_cell(comparison, trial, item) for item in columns])
        for trial in comparison.trials
    ]
    flagged = _flagged(comparison)
    footnotes = tuple(
        (letter, trial.name, flag)
        for trial in comparison.trials
        for letter, flag in zip(flagged.get(trial.name, ""), trial.flags, strict=True)
    )
    caption = f"Speed-up counts from {base.name}." if base else ""
    return Table(tuple(columns), tuple(lines), footnotes, caption)


def accuracy_table(comparison: Comparison) -> Table | None:
    """Return every accuracy with its interval as a bar; None if none was measured."""
    shown = measured_metrics(comparison, QUALITY)
    if not shown:
        return None
    ended = [trial for trial in comparison.trials if trial.status == "ok" and trial.quality]
    lines = [
        _line(
            comparison, trial, [_quality_cell(trial, item, _bar_end(ended, item)) for item in shown]
        )
        for trial in ended
    ]
    return Table(shown, tuple(lines))


def _line(comparison: Comparison, trial: Trial, cells: Sequence[Cell]) -> Line:
    other = trial.compute_type and trial.compute_type != trial.quantization
    failed = trial.status == "failed"
    return Line(
        name=trial.name,
        variant=variant_of(comparison, trial),
        marks=marks(comparison, trial),
        ran=f"ran as {trial.compute_type}" if other else "",
        footnotes=" ".join(_flagged(comparison).get(trial.name, "")),
        reason=(trial.reason or "no reason given") if failed else "",
        cells=() if failed else tuple(cells),
    )


def _flagged(comparison: Comparison) -> dict[str, list[str]]:
    """Return the footnotes of each flagged trial, numbered in the order of the trials."""
    numbers = itertools.count(1)
    return {
        trial.name: [str(next(numbers)) for _ in trial.flags]
        for trial in comparison.trials
        if trial.flags
    }


def _speed_cell(comparison: Comparison, trial: Trial, item: Metric) -> Cell:
    if isinstance(item, DerivedMetric):
        value = item.value(comparison, trial)
    else:
        value = median(trial, item.name)
    spread = trial.speed.get(item.name) if item.html == "interval" else None
    return Cell(show(value, item.format), value, interval(spread, item.format))


def _quality_cell(trial: Trial, item: QualityMetric, scale: float) -> Cell:
    estimate = trial.quality.get(item.name)
    if estimate is None:
        return Cell(ABSENT)
    floor = finite(trial.quality_notes.get("cosine_floor")) if item.name == "cosine" else None
    at = scaled(scale)
    return bar_cell(estimate, item.format, at, mark=None if floor is None else at(floor))


def _bar_end(trials: Sequence[Trial], item: QualityMetric) -> float:
    """Return the value at the full length of a bar."""
    if item.bar_end is not None:
        return item.bar_end
    values = [trial.quality[item.name] for trial in trials if item.name in trial.quality]
    return max((finite(each.high) or finite(each.mean) or 0.0 for each in values), default=0) or 1.0
