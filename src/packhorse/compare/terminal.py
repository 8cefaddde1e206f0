"""Render a comparison as text for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from packhorse.compare.document import Comparison, Trial
from packhorse.compare.metric_definitions import METRICS, DerivedMetric, Metric, QualityMetric
from packhorse.compare.narrative import headline, limits_line, recommendation_title
from packhorse.compare.report_values import (
    Change,
    baseline,
    changes,
    interval,
    marks,
    mean,
    median,
    short_name,
    variants,
    wasted_share,
)
from packhorse.reports.columns import Heading
from packhorse.reports.formats import ABSENT, number, percent, score, show, times
from packhorse.reports.terminal import (
    Lines,
    TextColumn,
    cells_line,
    fitting_columns,
    heading_lines,
    paragraph,
    rendered,
    row_line,
    text,
)
from packhorse.reports.text import visible


def table(comparison: Comparison, width: int, *, colour: bool = False) -> str:
    """Return trials, effects and recommendation in lines of at most `width` characters (60 at
    least).

    On a narrow terminal the least important columns are left out. Only the command is never
    wrapped, so that it can be copied.

    Args:
        colour: use terminal escape codes.
    """
    return rendered(
        [
            partial(section, comparison)
            for section in (_head, _trials, _notes, _effects, _recommendation)
        ],
        width,
        colour=colour,
    )


def _head(comparison: Comparison, width: int) -> Lines:
    yield from paragraph(f"packhorse compare {comparison.model}", width, "bold")
    yield from paragraph(headline(comparison), width, "dim")


def _trials(comparison: Comparison, width: int) -> Lines:
    names = {trial.name: _name(comparison, trial) for trial in comparison.trials}
    first = max((len(name) for name in names.values()), default=0)
    columns = fitting_columns(_columns(comparison), width - first)
    yield from heading_lines(columns, first)
    for engine, quantization in variants(comparison):
        own = [t for t in comparison.trials if (t.engine, t.quantization) == (engine, quantization)]
        yield from paragraph(_variant(engine, quantization, own), width, "bold")
        for trial in own:
            name = names[trial.name].ljust(first)
            if trial.status == "failed":
                yield from paragraph(f"failed: {trial.reason}", width, "red", name + "  ")
            else:
                chosen = trial.name == comparison.recommendation.trial
                yield row_line(name, trial.name, columns, "bold green" if chosen else "")


def _name(comparison: Comparison, trial: Trial) -> str:
    flagged = [other.name for other in comparison.trials if other.flags]
    letter = f" [{_letter(flagged.index(trial.name))}]" if trial.name in flagged else ""
    found = marks(comparison, trial)
    return f"  {visible(short_name(trial))}{letter}{f' {found}' if found else ''}"


def _variant(engine: str, quantization: str, trials: Sequence[Trial]) -> str:
    """Return the heading of one engine and format, with the compute type if it differs."""
    ran = dict.fromkeys(trial.compute_type for trial in trials if trial.compute_type)
    other = [name for name in ran if name != quantization]
    threads = dict.fromkeys(trial.threads for trial in trials if trial.threads)
    facts = [f"ran as {', '.join(other)}"] if other else []
    facts += [f"workers x threads: {', '.join(threads)}"] if threads else []
    return f"{engine} {quantization}" + (f" ({'; '.join(facts)})" if facts else "")


def _columns(comparison: Comparison) -> list[TextColumn]:
    """Return the columns of the metrics that have a terminal heading and were measured."""
    columns = []
    for metric in METRICS:
        if metric.terminal is not None:
            heading = metric.terminal
            if metric.name == "cosine":
                heading = replace(heading, lines=(heading.lines[0], _floor(comparison)))
            columns.append(_column(comparison, heading, partial(_value, comparison, metric)))
        if metric.terminal_interval is not None:
            cell = partial(_interval, metric)
            columns.append(_column(comparison, metric.terminal_interval, cell))
    return [column for column in columns if set(column.cells.values()) - {"", ABSENT}]


def _column(comparison: Comparison, heading: Heading, cell: Callable[[Trial], str]) -> TextColumn:
    ended = [trial for trial in comparison.trials if trial.status == "ok"]
    return TextColumn(heading, {trial.name: cell(trial) for trial in ended})


def _value(comparison: Comparison, metric: Metric, trial: Trial) -> str:
    if isinstance(metric, DerivedMetric):
        return show(metric.value(comparison, trial), metric.format)
    middle = mean if isinstance(metric, QualityMetric) else median
    return show(middle(trial, metric.name), metric.format)


def _interval(metric: Metric, trial: Trial) -> str:
    return interval(trial.speed.get(metric.name), metric.format)


def _floor(comparison: Comparison) -> str:
    floors = [trial.quality_notes.get("cosine_floor") for trial in comparison.trials]
    known = [floor for floor in floors if floor is not None]
    return f"({min(known):.2f})" if known else ""


def _notes(comparison: Comparison, width: int) -> Lines:
    base = baseline(comparison)
    lines = ["● Pareto front  ◆ its knee  ★ recommended  ≈ tied in speed with it"]
    lines.append(
        "run: generation without loading, low–high over the repeats; p50, p95: latency per row"
    )
    if base is not None:
        lines.append(f"speed up: run seconds of {base.name} / of the trial")
    if any(wasted_share(trial) is not None for trial in comparison.trials):
        lines.append(
            "wasted: padding, or prompt tokens computed one by one, depending on the engine"
        )
    if reference := comparison.reference.get("name"):
        floor = "; in brackets: cosine of unrelated texts" if _floor(comparison) else ""
        lines.append(f"same rows, prefix, cosine, KL: against {reference}{floor}")
    flagged = [trial for trial in comparison.trials if trial.flags]
    for index, trial in enumerate(flagged):
        lines.append(f"[{_letter(index)}] {'; '.join(trial.flags)}")
    for line in lines:
        yield from paragraph(line, width, "dim")


def _effects(comparison: Comparison, width: int) -> Lines:
    for kind in ("batching", "quantization"):
        rows: list[tuple[str, ...]] = [("", "speed", "", "same rows", "", "same prefix", "")]
        groups = set()
        for change in changes(comparison, kind):
            if change.group not in groups:
                groups.add(change.group)
                rows.append((f"  {change.group}", *[""] * 6))
            rows.append(_effect_row(change))
        if len(rows) > 1:
            if kind == "quantization":
                yield text("")
            yield text(f"what {kind} alone did", "bold")
            yield from _aligned(rows, width)


def _effect_row(change: Change) -> tuple[str, ...]:
    effect = change.effect
    speed, same, prefix = effect.speed_ratio, effect.rows_identical, effect.matched_prefix
    return (
        f"    {change.label}",
        show(speed.median, times), interval(speed, number),
        show(same.mean, percent), interval(same, percent),
        show(prefix.mean, score), interval(prefix, score),
    )  # fmt: skip


def _aligned(rows: Sequence[tuple[str, ...]], width: int) -> Lines:
    """Yield rows as aligned columns; intervals are left out if there is no room."""
    kept = list(range(len(rows[0])))
    widths = [max(len(row[index]) for row in rows) for index in kept]
    for dropped in (6, 4, 2):
        if sum(widths[index] + 2 for index in kept) - 2 <= width:
            break
        kept.remove(dropped)
    for number_of_row, row in enumerate(rows):
        cells = [(row[index], widths[index]) for index in kept[1:]]
        yield cells_line(row[0].ljust(widths[0]), cells, "" if number_of_row else "dim")


def _recommendation(comparison: Comparison, width: int) -> Lines:
    recommendation = comparison.recommendation
    yield from paragraph(recommendation_title(comparison), width, "bold")
    yield from paragraph(recommendation.reason, width)
    if recommendation.given_up:
        yield from paragraph(f"Given up: {recommendation.given_up}", width)
    if limits := limits_line(comparison):
        yield from paragraph(f"Limits: {limits}.", width)
    if recommendation.command:
        yield text(f"  {recommendation.command}", "cyan")


def _letter(index: int) -> str:
    """Return a, b, ... z, aa, ab, ..."""
    return (_letter(index // 26 - 1) if index >= 26 else "") + "abcdefghijklmnopqrstuvwxyz"[
        index % 26
    ]
