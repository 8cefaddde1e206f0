"""Render a comparison as report.md."""

from __future__ import annotations

from packhorse.compare.document import Comparison, Trial
from packhorse.compare.metric_definitions import (
    GENERAL_NOTES,
    QUALITY,
    SPEED,
    SPEED_UP,
    Metric,
    measured_metrics,
)
from packhorse.compare.narrative import headline, limits_line, recommendation_title
from packhorse.compare.report_values import (
    Change,
    baseline,
    changes,
    interval,
    marks,
    mean,
    median,
    speed_up,
)
from packhorse.reports.formats import ABSENT, percent, score, show, times
from packhorse.reports.markdown import cell, escape, fenced, pairs, table


def markdown_text(comparison: Comparison) -> str:
    """Return the report as GitHub-flavoured Markdown, without worst rows and raw values."""
    sections = [
        f"# packhorse compare: {escape(comparison.model)}",
        escape(headline(comparison)),
        *_recommendation(comparison),
        "## Trials",
        *_speed(comparison),
        "## Accuracy",
        *_accuracy(comparison),
        "## What one change alone did",
        *_effects(comparison),
        "## Machine, versions, command",
        pairs(comparison.machine.items()),
        pairs(comparison.versions.items()),
        fenced(comparison.command),
        "## How to read this",
        _meanings(comparison),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _recommendation(comparison: Comparison) -> list[str]:
    recommendation = comparison.recommendation
    limits = limits_line(comparison)
    return [
        f"## {escape(recommendation_title(comparison))}",
        escape(recommendation.reason),
        f"Given up: {escape(recommendation.given_up)}" if recommendation.given_up else "",
        f"Limits: {escape(limits)}." if limits else "",
        fenced(recommendation.command) if recommendation.command else "",
    ]


def _speed(comparison: Comparison) -> list[str]:
    base = baseline(comparison)
    shown = [item for item in measured_metrics(comparison, SPEED) if item.markdown]
    header = ["Trial", SPEED_UP.heading, *(item.heading for item in shown)]
    rows = []
    for trial in comparison.trials:
        if trial.status == "failed":
            continue
        cells = [_with_interval(trial, item, median(trial, item.name)) for item in shown]
        rows.append(
            [_named(comparison, trial), show(speed_up(comparison, trial), SPEED_UP.format), *cells]
        )
    failures = [
        f"- {escape(trial.name)} **failed**: {escape(trial.reason)}"
        for trial in comparison.trials
        if trial.status == "failed"
    ]
    flags = [
        f"- {escape(trial.name)}: {escape(flag)}"
        for trial in comparison.trials
        for flag in trial.flags
    ]
    return [
        table(header, rows),
        "● on the Pareto front, ◆ its knee, ★ recommended, ≈ tied with it. "
        + (f"Speed-up counts from {escape(base.name)}." if base else ""),
        "\n".join(failures),
        "Before believing a row:\n\n" + "\n".join(flags) if flags else "",
    ]


def _accuracy(comparison: Comparison) -> list[str]:
    shown = measured_metrics(comparison, QUALITY)
    if not shown:
        return ["Accuracy was not measured."]
    rows = [
        [
            escape(trial.name),
            *(_with_interval(trial, item, mean(trial, item.name)) for item in shown),
            show(trial.quality_notes.get("cosine_floor"), score),
        ]
        for trial in comparison.trials
        if trial.quality
    ]
    header = ["Trial", *(item.heading for item in shown), "Cosine floor"]
    name = str(comparison.reference.get("name", ""))
    return [f"Against {escape(name)}." if name else "", table(header, rows)]


def _effects(comparison: Comparison) -> list[str]:
    sections = []
    for kind in ("batching", "quantization"):
        found = changes(comparison, kind)
        if found:
            header = ["Of", "Change", "Speed", "Rows identical", "Prefix"]
            sections += [f"### {kind.capitalize()} alone", table(header, map(_effect_row, found))]
    return sections or ["No two trials differ in one thing only."]


def _effect_row(change: Change) -> list[str]:
    effect = change.effect
    speed, rows, prefix = effect.speed_ratio, effect.rows_identical, effect.matched_prefix
    return [
        escape(change.group),
        escape(change.label),
        cell(show(speed.median, times), interval(speed, times)),
        cell(show(rows.mean, percent), interval(rows, percent)),
        cell(show(prefix.mean, score), interval(prefix, score)),
    ]


def _meanings(comparison: Comparison) -> str:
    lines = [f"- {escape(text)}" for text in GENERAL_NOTES]
    lines += [
        f"- **{escape(item.label)}**: {escape(item.meaning)}."
        for item in measured_metrics(comparison, SPEED + QUALITY)
    ]
    return "\n".join(lines)


def _named(comparison: Comparison, trial: Trial) -> str:
    return " ".join(part for part in (escape(trial.name), marks(comparison, trial)) if part)


def _with_interval(trial: Trial, item: Metric, value: float | None) -> str:
    if value is None:
        return ABSENT
    spread = trial.speed.get(item.name) or trial.quality.get(item.name)
    return cell(item.format(value), interval(spread, item.format))
