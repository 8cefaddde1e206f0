"""Render an assessment as text for a terminal or a pipe."""

from __future__ import annotations

from functools import partial

from packhorse.assess.document import Assessment, Contestant
from packhorse.assess.metric_definitions import Metric, metrics
from packhorse.assess.narrative import (
    cascade_sentence,
    economy_lines,
    headline,
    labels_needed_sentence,
    pair_sentence,
    profile_lines,
    runtime_line,
    verdict_title,
)
from packhorse.reports.terminal import (
    Lines,
    TextColumn,
    fitting_columns,
    heading_lines,
    paragraph,
    rendered,
    row_line,
    text,
)


def table(assessment: Assessment, width: int, *, colour: bool = False) -> str:
    """Return verdict, contestants and costs in lines of at most `width` characters (60 at least).

    On a narrow terminal the least important columns are left out; only commands are never wrapped.
    """
    sections = (_head, _verdict, _contestants, _further, _rows, _end)
    return rendered([partial(each, assessment) for each in sections], width, colour=colour)


def _head(assessment: Assessment, width: int) -> Lines:
    yield from paragraph(f"packhorse assess {assessment.model}", width, "bold")
    yield from paragraph(headline(assessment), width, "dim")
    yield from paragraph(runtime_line(assessment.ran), width, "dim")


def _verdict(assessment: Assessment, width: int) -> Lines:
    verdict = assessment.verdict
    yield from paragraph(
        verdict_title(assessment), width, "bold green" if verdict.winner else "bold"
    )
    yield from paragraph(verdict.reason, width)
    for caution in verdict.cautions:
        yield from paragraph(f"Caution: {caution}", width, "yellow")


def _contestants(assessment: Assessment, width: int) -> Lines:
    names = {each.name: f"  {_mark(each)}{each.name}" for each in assessment.contestants}
    first = max(map(len, names.values()))
    columns = [
        TextColumn(each.terminal, {c.name: _cell(each, c) for c in assessment.contestants})
        for each in metrics(assessment)
    ]
    columns = fitting_columns(columns, width - first)
    yield from heading_lines(columns, first)
    for each in assessment.contestants:
        style = "bold" if each.finalist else "dim" if each.kind == "dummy" else ""
        yield row_line(names[each.name].ljust(first), each.name, columns, style)
    yield from paragraph("★ finalist, chosen inside the training part", width, "dim")


def _mark(contestant: Contestant) -> str:
    return "★ " if contestant.finalist else "  "


def _cell(metric: Metric, contestant: Contestant) -> str:
    figure = metric.figure(contestant)
    if metric.interval_on_terminal and figure.interval:
        return f"{figure.text} ({figure.interval})"
    return figure.text


def _further(assessment: Assessment, width: int) -> Lines:
    lines = [pair_sentence(assessment), *map(labels_needed_sentence, assessment.curves)]
    lines += [cascade_sentence(assessment), *economy_lines(assessment)]
    for line in filter(None, lines):
        yield from paragraph(line, width, first="- ")


def _rows(assessment: Assessment, width: int) -> Lines:
    for line in (*profile_lines(assessment), *assessment.notes):
        yield from paragraph(line, width, "dim")


def _end(assessment: Assessment, width: int) -> Lines:
    if assessment.classify:
        provisional = "" if assessment.verdict.winner else " (provisional: the classic finalist)"
        yield from paragraph(f"saved in {assessment.saved}{provisional}; use it with", width)
        yield text(f"  {assessment.classify}", "cyan")
