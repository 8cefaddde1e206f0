"""Render an assessment as report.md."""

from __future__ import annotations

from packhorse.assess.document import Assessment, Contestant
from packhorse.assess.metric_definitions import Metric, interval_text, metrics
from packhorse.assess.narrative import (
    cascade_sentence,
    economy_lines,
    headline,
    labels_needed_sentence,
    method_lines,
    pair_sentence,
    profile_lines,
    verdict_title,
)
from packhorse.reports.formats import number, percent
from packhorse.reports.markdown import cell, escape, fenced, pairs, table

MAX_LINES = 12
"""Approximate lines of the cascade's table; report.json has all points."""


def markdown_text(assessment: Assessment) -> str:
    """Return the report as GitHub-flavoured Markdown."""
    sections = [
        f"# packhorse assess: {escape(assessment.model)}",
        escape(headline(assessment)),
        f"## {escape(verdict_title(assessment))}",
        escape(assessment.verdict.reason),
        *(f"Caution: {escape(caution)}" for caution in assessment.verdict.cautions),
        fenced(assessment.classify) if assessment.classify else "",
        "## Contestants",
        *_contestants(assessment),
        escape(pair_sentence(assessment)),
        "## Labels needed",
        _bullets([labels_needed_sentence(curve) for curve in assessment.curves]),
        _curves(assessment),
        "## Cascade",
        escape(cascade_sentence(assessment) or "There is no cascade."),
        _cascade(assessment),
        "## Cost",
        _bullets(economy_lines(assessment)),
        "## The rows",
        _bullets(profile_lines(assessment)),
        "## Chosen settings",
        _settings(assessment),
        "## How the contest was held",
        _bullets([*method_lines(assessment), *assessment.notes]),
        "## Machine, versions, command",
        pairs(assessment.machine.items()),
        pairs({**assessment.ran, **assessment.versions}.items()),
        fenced(assessment.command) if assessment.command else "",
        "## What the columns mean",
        _meanings(assessment),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _contestants(assessment: Assessment) -> list[str]:
    shown = metrics(assessment)
    header = ["Contestant", *(escape(metric.heading) for metric in shown)]
    rows = [
        [_named(each), *(_figure(metric, each) for metric in shown)]
        for each in assessment.contestants
    ]
    return [table(header, rows), "★ finalist, chosen inside the training part."]


def _named(contestant: Contestant) -> str:
    return f"{escape(contestant.title)}{' ★' if contestant.finalist else ''}"


def _figure(metric: Metric, contestant: Contestant) -> str:
    figure = metric.figure(contestant)
    return cell(figure.text, figure.interval)


def _curves(assessment: Assessment) -> str:
    rows = [
        [
            escape(curve.title),
            f"{point.per_class:,}",
            f"{point.rows:,}",
            cell(percent(point.mean), f"{percent(point.low)}–{percent(point.high)}"),
        ]
        for curve in assessment.curves
        for point in curve.points
    ]
    header = ["Contestant", "Labels per class, at most", "Labels in total", "Accuracy"]
    return table(header, rows) if rows else ""


def _cascade(assessment: Assessment) -> str:
    """Return evenly spaced points with the ends and the chosen one."""
    cascade = assessment.cascade
    if cascade is None:
        return ""
    step = max(1, len(cascade.points) // MAX_LINES)
    shown = {*range(0, len(cascade.points), step), cascade.chosen, len(cascade.points) - 1}
    rows = [
        [
            f"{point.threshold:.4g}{' ★' if index == cascade.chosen else ''}",
            percent(point.share),
            cell(percent(point.accuracy.value), interval_text(point.accuracy)),
            percent(point.validation_accuracy),
            number(point.core_seconds),
        ]
        for index, point in enumerate(cascade.points)
        if index in shown
    ]
    header = ["Threshold", "Rows to the model", "Right", "Right, validation", "core-s per 1,000"]
    return table(header, rows)


def _settings(assessment: Assessment) -> str:
    lines = [
        f"- {escape(each.title)}: validated {percent(each.validated)} on "
        f"{escape(each.validated_on)}"
        + "".join(f"; {escape(name)} {escape(value)}" for name, value in each.settings.items())
        for each in assessment.contestants
        if each.kind != "dummy"
    ]
    return "\n".join(lines) + "\n\n" + fenced(assessment.prompt["instruction"], "text")


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _meanings(assessment: Assessment) -> str:
    return "\n".join(
        f"- **{escape(metric.heading)}**: {escape(metric.meaning)}."
        for metric in metrics(assessment)
    )
