"""An assessment as text for a terminal or a pipe."""

from __future__ import annotations

from functools import partial

from packhorse.assess.document import Assessment, Contestant
from packhorse.assess.metric_definitions import Column, columns
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
from packhorse.reports.terminal import Lines, cells_line, paragraph, rendered, text

_DROPPED_FIRST = (
    "start", "brier", "balanced", "p50", "disk", "calibration", "f1", "seconds", "all", "invalid",
    "memory",
)  # fmt: skip


def table(assessment: Assessment, width: int, *, colour: bool = False) -> str:
    """Verdict, contestants and what follows, in lines of at most `width` characters (60 at least).

    The least important columns go first where there is no room; only commands are never broken.
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
    shown = _fitting(assessment, columns(assessment), width - first)
    widths = [_width(assessment, column) for column in shown]
    for number_of_line in (0, 1):
        headings = [column.lines[number_of_line] for column in shown]
        yield cells_line(" " * first, list(zip(headings, widths, strict=True)), "dim")
    for each in assessment.contestants:
        cells = list(zip([_cell(column, each) for column in shown], widths, strict=True))
        style = "bold" if each.finalist else "dim" if each.kind == "dummy" else ""
        yield cells_line(names[each.name].ljust(first), cells, style)
    yield from paragraph("★ finalist, chosen inside the training part", width, "dim")


def _mark(contestant: Contestant) -> str:
    return "★ " if contestant.finalist else "  "


def _cell(column: Column, contestant: Contestant) -> str:
    figure = column.figure(contestant)
    if column.name in ("accuracy",) and figure.around:
        return f"{figure.text} ({figure.around})"
    return figure.text


def _width(assessment: Assessment, column: Column) -> int:
    cells = [_cell(column, each) for each in assessment.contestants]
    return max(map(len, (*column.lines, *cells)))


def _fitting(assessment: Assessment, every: list[Column], room: int) -> list[Column]:
    kept = every
    for name in _DROPPED_FIRST:
        if sum(_width(assessment, column) + 2 for column in kept) <= room:
            break
        kept = [column for column in kept if column.name != name]
    return kept


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
