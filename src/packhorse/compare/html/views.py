"""What the upper parts of the page show: tiles, legends, the tables of trials."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from packhorse.compare.document import Comparison, Trial
from packhorse.compare.html.cells import bar_cell
from packhorse.compare.html.scatter import WIDE, largest_memory, outline, radius_of
from packhorse.compare.metric_definitions import QUALITY, SPEED, Metric, measure
from packhorse.compare.report_values import (
    baseline,
    comparable_trials,
    interval,
    marks,
    median,
    speed_up,
    variant_of,
    variants,
    wasted_share,
)
from packhorse.reports.formats import ABSENT, finite, gigabytes, number, percent, score, show, times
from packhorse.reports.html.cells import Cell, Tile, scaled

_NOT_IN_TABLE = {  # it would be too wide; report.csv has all of them
    "wall_seconds", "load_seconds", "prompt_tokens_per_second", "generated_tokens_per_second",
    "first_token_p95", "padding_share", "token_by_token_prefill_share", "batches",
    "generated_tokens",
}  # fmt: skip
_WITH_INTERVAL = {"generate_seconds", "rows_per_second", "latency_p50", "latency_p95"}


@dataclass(frozen=True, slots=True)
class Line:
    """A trial in a table. ran: what really ran, where that is not what its name says; footnotes:
    letters of its flags; reason: of a failed trial, which has no cells."""

    name: str
    variant: int
    marks: str
    ran: str
    footnotes: str
    reason: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Heading:
    """more: whether more is better; None where that cannot be said."""

    label: str
    unit: str
    meaning: str
    more: bool | None


@dataclass(frozen=True, slots=True)
class Table:
    headings: tuple[Heading, ...]
    lines: tuple[Line, ...]
    footnotes: tuple[tuple[str, str, str], ...] = ()
    """Letter, trial, text."""
    caption: str = ""


def legend(comparison: Comparison) -> list[tuple[int, str, str]]:
    """(variant, outline, name) of each engine and format."""
    return [
        (place, outline(place, 6.0), f"{engine} {quantization}")
        for place, (engine, quantization) in enumerate(variants(comparison))
    ]


def size_legend(comparison: Comparison) -> list[tuple[float, str]]:
    """(radius, memory) of a small and a large marker."""
    known = [median(trial, "peak_memory_bytes") or 0.0 for trial in comparison.trials]
    sizes = sorted({value for value in known if value})
    ends = dict.fromkeys([sizes[0], sizes[-1]]) if sizes else {}
    return [
        (radius_of(size, largest_memory(comparison), WIDE.largest), gigabytes(size))
        for size in ends
    ]


def tiles(comparison: Comparison) -> list[Tile]:
    """The recommended trial in four figures, beside what the baseline has."""
    chosen = next((t for t in comparison.trials if t.name == comparison.recommendation.trial), None)
    base = baseline(comparison)
    if chosen is None:
        return []
    faster = speed_up(chosen, base)
    over = f"{times(faster)} that of {base.name}" if faster and base and base is not chosen else ""
    found = [Tile("Throughput", show(median(chosen, "rows_per_second"), number), "rows/s", over)]
    for name in ("latency_p95", "peak_memory_bytes"):
        item = measure(name)
        other = median(base, name) if base and base is not chosen else None
        note = f"{base.name}: {item.form(other)} {item.unit}" if base and other is not None else ""
        found.append(Tile(item.label, show(median(chosen, name), item.form), item.unit, note))
    prefix = chosen.quality.get("matched_prefix")
    if prefix is not None:
        around = interval(prefix, score)
        found.append(
            Tile("Matched prefix", show(prefix.mean, score), "", around and f"95%: {around}")
        )
    return found


def trial_table(comparison: Comparison) -> Table:
    """Speed and memory of every trial."""
    base = baseline(comparison)
    shown = [
        item for item in comparable_trials(comparison, SPEED) if item.name not in _NOT_IN_TABLE
    ]
    against = f"generate seconds of {base.name} / of the trial" if base else ""
    headings = [Heading("Speed-up", "", against, True), *map(_heading, shown)]
    wasteful = any(wasted_share(trial) is not None for trial in comparison.trials)
    if wasteful:
        one_by_one = measure("token_by_token_prefill_share").meaning
        meaning = f"{measure('padding_share').meaning}; or {one_by_one}"
        headings.append(Heading("Wasted", "", meaning, False))
    lines = []
    for trial in comparison.trials:
        gain = speed_up(trial, base)
        cells = [Cell(show(gain, times), gain)]
        cells += [_speed_cell(trial, item) for item in shown]
        cells += [Cell(show(wasted_share(trial), percent), wasted_share(trial))] if wasteful else []
        lines.append(_line(comparison, trial, cells))
    flagged = _flagged(comparison)
    footnotes = tuple(
        (letter, trial.name, flag)
        for trial in comparison.trials
        for letter, flag in zip(flagged.get(trial.name, ""), trial.flags, strict=True)
    )
    caption = f"Speed-up counts from {base.name}." if base else ""
    return Table(tuple(headings), tuple(lines), footnotes, caption)


def accuracy_table(comparison: Comparison) -> Table | None:
    """Every accuracy with its interval as a bar; None when none was measured."""
    shown = comparable_trials(comparison, QUALITY)
    if not shown:
        return None
    ended = [trial for trial in comparison.trials if trial.status == "ok" and trial.quality]
    scales = {item.name: _scale(ended, item.name) for item in shown}
    lines = [
        _line(comparison, trial, [_quality_cell(trial, item, scales[item.name]) for item in shown])
        for trial in ended
    ]
    return Table(tuple(map(_heading, shown)), tuple(lines))


def _heading(item: Metric) -> Heading:
    return Heading(item.label, item.unit, item.meaning, item.more)


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
    """The footnotes of each flagged trial: 1, 2, ... in the order of the trials."""
    numbers = itertools.count(1)
    return {
        trial.name: [str(next(numbers)) for _ in trial.flags]
        for trial in comparison.trials
        if trial.flags
    }


def _speed_cell(trial: Trial, item: Metric) -> Cell:
    value = median(trial, item.name)
    around = interval(trial.speed.get(item.name), item.form)
    return Cell(show(value, item.form), value, around if item.name in _WITH_INTERVAL else "")


def _quality_cell(trial: Trial, item: Metric, scale: float) -> Cell:
    estimate = trial.quality.get(item.name)
    if estimate is None:
        return Cell(ABSENT)
    floor = finite(trial.quality_notes.get("cosine_floor")) if item.name == "cosine" else None
    at = scaled(scale)
    return bar_cell(estimate, item.form, at, mark=None if floor is None else at(floor))


def _scale(trials: Sequence[Trial], name: str) -> float:
    """What the whole length of a bar stands for: 1, or what holds the largest value."""
    values = [trial.quality[name] for trial in trials if name in trial.quality]
    highest = max(
        (finite(value.high) or finite(value.mean) or 0.0 for value in values), default=0.0
    )
    if name == "chrf":
        return 100.0
    return 1.0 if name != "kl_divergence" else highest or 1.0
