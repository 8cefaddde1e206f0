"""Content of the lower part of the page: effects, worst rows, raw values, definitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from packhorse.compare.document import Comparison, Repeat, Trial, WorstRow
from packhorse.compare.html.cells import bar_cell
from packhorse.compare.html.text_diff import SplitText, split_at_difference
from packhorse.compare.metric_definitions import (
    GENERAL_NOTES,
    QUALITY,
    RAW_VALUES,
    SPEED,
    Metric,
    measured_metrics,
)
from packhorse.compare.report_values import Change, bounds, changes, variant_of
from packhorse.reports.formats import (
    ABSENT,
    Format,
    finite,
    number,
    percent,
    score,
    show,
    times,
)
from packhorse.reports.html.axes import Axis, ratio_axis
from packhorse.reports.html.cells import BAR, Cell, scaled


@dataclass(frozen=True, slots=True)
class EffectLine:
    change: Change
    speed: Cell
    rows: Cell
    prefix: Cell


@dataclass(frozen=True, slots=True)
class Effects:
    """Effects of one kind: a summary per group, and the changes of each group."""

    kind: str
    sentences: tuple[str, ...]
    groups: tuple[tuple[str, tuple[EffectLine, ...]], ...]


def effects(comparison: Comparison) -> list[Effects]:
    found = []
    speeds = [effect.speed_ratio for effect in comparison.effects]
    ends = (end for speed in speeds for end in (speed.median, *(bounds(speed) or ())))
    ratios = [ratio for ratio in _known(ends) if ratio > 0]
    for kind in ("batching", "quantization"):
        changed = changes(comparison, kind)
        if changed and ratios:
            axis = ratio_axis(min(ratios), max(ratios), 0.0, BAR)
            groups = _grouped(changed)
            sentences = tuple(_summary(name, members) for name, members in groups.items())
            lines = tuple(
                (name, tuple(_effect_line(change, axis) for change in members))
                for name, members in groups.items()
            )
            found.append(Effects(kind, sentences, lines))
    return found


def _grouped(changed: Sequence[Change]) -> dict[str, list[Change]]:
    groups: dict[str, list[Change]] = {}
    for change in changed:
        groups.setdefault(change.group, []).append(change)
    return groups


def _effect_line(change: Change, axis: Axis) -> EffectLine:
    effect = change.effect
    return EffectLine(
        change,
        bar_cell(effect.speed_ratio, times, axis.at, around=number, mark=axis.at(1.0)),
        bar_cell(effect.rows_identical, percent, scaled(1.0)),
        bar_cell(effect.matched_prefix, score, scaled(1.0)),
    )


def _summary(group: str, members: Sequence[Change]) -> str:
    shares = _known(change.effect.rows_identical.mean for change in members)
    speeds = _known(change.effect.speed_ratio.median for change in members)
    same = f"{_range(shares, percent)} of rows identical"
    if shares and shares[0] == 1:
        same = "every row identical"
    return f"{group or 'All'}: {same}, speed {_range(speeds, times)}."


def _known(values: Iterable[float]) -> list[float]:
    return sorted(value for value in values if finite(value) is not None)


def _range(ordered: Sequence[float], form: Format) -> str:
    if not ordered:
        return ABSENT
    low, high = form(ordered[0]), form(ordered[-1])
    return low if low == high else f"{low} to {high}"


@dataclass(frozen=True, slots=True)
class Worst:
    """A row and the first difference of its two texts; facts: its distance from the reference."""

    id: str
    prompt: str
    facts: str
    reference: SplitText
    text: SplitText


@dataclass(frozen=True, slots=True)
class WorstRows:
    trial: str
    variant: int
    rows: tuple[Worst, ...]
    opened: bool


def worst_rows(comparison: Comparison) -> list[WorstRows]:
    """Return the worst rows of each trial; those of the recommended one are open."""
    found = [trial for trial in comparison.trials if trial.worst_rows]
    recommended = comparison.recommendation.trial
    opened = (
        recommended if recommended in {t.name for t in found} else found[0].name if found else ""
    )
    return [
        WorstRows(
            trial.name,
            variant_of(comparison, trial),
            tuple(
                Worst(row.id, row.prompt, _distance(row), *split_at_difference(row))
                for row in trial.worst_rows
            ),
            trial.name == opened,
        )
        for trial in found
    ]


def _distance(row: WorstRow) -> str:
    cosine = f", cosine {show(row.cosine, score)}" if finite(row.cosine) is not None else ""
    return f"matched prefix {show(row.matched_prefix, score)}{cosine}"


@dataclass(frozen=True, slots=True)
class RawTrial:
    """The measured values of a trial, one line per repeat under `headings`."""

    name: str
    variant: int
    ran: str
    command: str
    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def repeats(comparison: Comparison) -> list[RawTrial]:
    headings = ("Repeat", *RAW_VALUES.values())
    return [
        RawTrial(
            trial.name,
            variant_of(comparison, trial),
            ", ".join(_ran(trial)),
            trial.command,
            headings,
            tuple(map(_raw_line, trial.repeats)),
        )
        for trial in comparison.trials
    ]


def _ran(trial: Trial) -> list[str]:
    facts = [f"compute type {trial.compute_type}"] if trial.compute_type else []
    return facts + ([f"workers x threads {trial.threads}"] if trial.threads else [])


def _raw_line(repeat: Repeat) -> tuple[str, ...]:
    shown = [metric for name in RAW_VALUES for metric in SPEED if metric.name == name]
    cells = (show(metric.value(repeat), metric.format) for metric in shown)
    return (str(repeat.number + 1), *cells)


def meanings(comparison: Comparison) -> tuple[tuple[str, ...], list[Metric]]:
    """Return the general notes and the metrics that were measured."""
    return GENERAL_NOTES, list(measured_metrics(comparison, SPEED + QUALITY))
