"""A comparison as report.csv and report.md."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from packhorse.compare.document import Comparison, Trial
from packhorse.compare.figures import (
    Change,
    baseline,
    bounds,
    changes,
    headline,
    interval,
    limits_line,
    marks,
    mean,
    measured,
    median,
    plain,
    recommendation_title,
    speed_up,
    visible,
)
from packhorse.compare.measures import (
    ABSENT,
    GENERAL_MEANINGS,
    QUALITY,
    SPEED,
    Measure,
    finite,
    percent,
    score,
    show,
    times,
)

Row = dict[str, str | float | int | None]


def csv_text(comparison: Comparison) -> str:
    """A line a trial: FIGURE_median, _low, _high of every speed figure, MEASURE_mean, _low, _high
    of every quality measure, then the other notes. Empty is not measured. Times are seconds, sizes
    bytes, shares 0 to 1, chrF 0 to 100; speed_up counts from the trial speed_up_over names."""
    base = baseline(comparison)
    rows = [_csv_row(comparison, trial, base) for trial in comparison.trials]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(comparison: Comparison, trial: Trial, base: Trial | None) -> Row:
    recommendation = comparison.recommendation
    row: Row = {
        "name": trial.name,
        "engine": trial.engine,
        "quantization": trial.quantization,
        "batching": trial.batching,
        "status": trial.status,
        "reason": visible(trial.reason),
        "compute_type": trial.compute_type,
        "threads": trial.threads,
        "repeats": len(trial.repeats),
        "pareto": int(trial.name in comparison.pareto),
        "knee": int(trial.name == comparison.knee),
        "recommended": int(trial.name == recommendation.trial),
        "tied": int(trial.name in recommendation.ties),
        "speed_up": speed_up(trial, base),
        "speed_up_over": base.name if base else "",
    }
    for item in SPEED:
        row |= _csv_cells(trial, item, "median", median(trial, item.name))
    for item in QUALITY:
        row |= _csv_cells(trial, item, "mean", mean(trial, item.name))
    noted = dict.fromkeys(name for each in comparison.trials for name in each.quality_notes)
    row |= {name: finite(trial.quality_notes.get(name)) for name in noted}
    return row | {"flags": visible("; ".join(trial.flags)), "command": trial.command}


def _csv_cells(trial: Trial, item: Measure, middle: str, value: float | None) -> Row:
    low, high = bounds(trial.speed.get(item.name) or trial.quality.get(item.name)) or (None, None)
    return {f"{item.name}_{middle}": value, f"{item.name}_low": low, f"{item.name}_high": high}


def markdown_text(comparison: Comparison) -> str:
    """The report as GitHub-flavoured Markdown; worst rows and raw values are in the others."""
    sections = [
        f"# packhorse compare: {_escape(comparison.model)}",
        _escape(headline(comparison)),
        *_recommendation(comparison),
        "## Trials",
        *_speed(comparison),
        "## Accuracy",
        *_accuracy(comparison),
        "## What one change alone did",
        *_effects(comparison),
        "## Machine, versions, command",
        _pairs(comparison.machine.items()),
        _pairs(comparison.versions.items()),
        _fenced(comparison.command),
        "## How to read this",
        _meanings(comparison),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _recommendation(comparison: Comparison) -> list[str]:
    recommendation = comparison.recommendation
    limits = limits_line(comparison)
    return [
        f"## {_escape(recommendation_title(comparison))}",
        _escape(recommendation.reason),
        f"Given up: {_escape(recommendation.given_up)}" if recommendation.given_up else "",
        f"Limits: {_escape(limits)}." if limits else "",
        _fenced(recommendation.command) if recommendation.command else "",
    ]


def _speed(comparison: Comparison) -> list[str]:
    base = baseline(comparison)
    shown = [
        item
        for item in measured(comparison, SPEED)
        if item.name not in ("batches", "generated_tokens", "prompt_tokens_per_second")
    ]
    header = ["Trial", "Speed-up", *(item.heading for item in shown)]
    rows = []
    for trial in comparison.trials:
        if trial.status == "failed":
            continue
        cells = [_with_interval(trial, item, median(trial, item.name)) for item in shown]
        rows.append([_named(comparison, trial), show(speed_up(trial, base), times), *cells])
    failures = [
        f"- {_escape(trial.name)} **failed**: {_escape(trial.reason)}"
        for trial in comparison.trials
        if trial.status == "failed"
    ]
    flags = [
        f"- {_escape(trial.name)}: {_escape(flag)}"
        for trial in comparison.trials
        for flag in trial.flags
    ]
    return [
        _table(header, rows),
        "● on the Pareto front, ◆ its knee, ★ recommended, ≈ tied with it. "
        + (f"Speed-up counts from {_escape(base.name)}." if base else ""),
        "\n".join(failures),
        "Before believing a row:\n\n" + "\n".join(flags) if flags else "",
    ]


def _accuracy(comparison: Comparison) -> list[str]:
    shown = measured(comparison, QUALITY)
    if not shown:
        return ["Accuracy was not measured."]
    rows = [
        [
            _escape(trial.name),
            *(_with_interval(trial, item, mean(trial, item.name)) for item in shown),
            show(trial.quality_notes.get("cosine_floor"), score),
        ]
        for trial in comparison.trials
        if trial.quality
    ]
    header = ["Trial", *(item.heading for item in shown), "Cosine floor"]
    name = str(comparison.reference.get("name", ""))
    return [f"Against {_escape(name)}." if name else "", _table(header, rows)]


def _effects(comparison: Comparison) -> list[str]:
    sections = []
    for kind in ("batching", "quantization"):
        found = changes(comparison, kind)
        if found:
            header = ["Of", "Change", "Speed", "Rows identical", "Prefix"]
            sections += [f"### {kind.capitalize()} alone", _table(header, map(_effect_row, found))]
    return sections or ["No two trials differ in one thing only."]


def _effect_row(change: Change) -> list[str]:
    effect = change.effect
    speed, rows, prefix = effect.speed_ratio, effect.rows_identical, effect.matched_prefix
    return [
        _escape(change.group),
        _escape(change.label),
        _cell(show(speed.median, times), interval(speed, times)),
        _cell(show(rows.mean, percent), interval(rows, percent)),
        _cell(show(prefix.mean, score), interval(prefix, score)),
    ]


def _meanings(comparison: Comparison) -> str:
    lines = [f"- {_escape(text)}" for text in GENERAL_MEANINGS]
    lines += [
        f"- **{_escape(item.label)}**: {_escape(item.meaning)}."
        for item in measured(comparison, SPEED + QUALITY)
    ]
    return "\n".join(lines)


def _named(comparison: Comparison, trial: Trial) -> str:
    return " ".join(part for part in (_escape(trial.name), marks(comparison, trial)) if part)


def _with_interval(trial: Trial, item: Measure, value: float | None) -> str:
    if value is None:
        return ABSENT
    spread = trial.speed.get(item.name) or trial.quality.get(item.name)
    return _cell(item.form(value), interval(spread, item.form))


def _cell(value: str, around: str) -> str:
    return f"{value} ({around})" if around else value


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _pairs(items: Iterable[tuple[str, object]]) -> str:
    pairs = (plain(name, value) for name, value in items)
    return "\n".join(f"- {_escape(name)}: {_escape(value)}" for name, value in pairs)


def _fenced(command: str) -> str:
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{visible(command)}\n{fence}"


def _escape(text: str) -> str:
    """Text that Markdown and the HTML inside it leave alone, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", " ".join(visible(text).split()))
