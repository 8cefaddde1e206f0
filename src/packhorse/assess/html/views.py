"""Tiles, table of contestants and chosen settings of the page."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.assess.document import Assessment, Contestant
from packhorse.assess.html.charts import VARIANTS
from packhorse.assess.metric_definitions import Metric, interval_text, metrics
from packhorse.assess.narrative import points
from packhorse.reports.formats import number, percent
from packhorse.reports.html.cells import Bar, Cell, Tile, scaled


@dataclass(frozen=True, slots=True)
class Line:
    title: str
    variant: int
    finalist: bool
    chosen: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    columns: tuple[Metric, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a contestant and how they were chosen."""

    title: str
    variant: int
    validated: str
    facts: tuple[tuple[str, str], ...]


def tiles(assessment: Assessment) -> list[Tile]:
    """Return the verdict in four figures."""
    classic, model = assessment.classic, assessment.language_model
    found = [
        Tile(
            "Classic",
            percent(classic.shared.accuracy.value),
            "right",
            interval_text(classic.shared.accuracy),
        ),
        Tile(
            "Language model",
            percent(model.shared.accuracy.value),
            "right",
            interval_text(model.shared.accuracy),
        ),
        Tile("Difference", points(assessment.pair.difference).partition(" (")[0].split()[0],
             "points", f"95%: {_ends(assessment)}"),
    ]  # fmt: skip
    if classic.costs is not None and model.costs is not None and classic.costs.core_seconds > 0:
        ratio = model.costs.core_seconds / classic.costs.core_seconds
        found.append(
            Tile(
                "Work of the model",
                number(ratio),
                "times",
                f"{number(model.costs.core_seconds)} and {number(classic.costs.core_seconds)} "
                "core-seconds per 1,000 rows",
            )
        )
    return found


def _ends(assessment: Assessment) -> str:
    difference = assessment.pair.difference
    return f"{100 * (difference.low or 0.0):+.1f} to {100 * (difference.high or 0.0):+.1f}"


def contestant_table(assessment: Assessment) -> Table:
    """Return every figure of every contestant."""
    shown = tuple(metrics(assessment))
    lines = tuple(
        Line(
            title=each.title,
            variant=VARIANTS[each.kind],
            finalist=each.finalist,
            chosen=each.name == assessment.verdict.winner,
            cells=tuple(_cell(metric, each) for metric in shown),
        )
        for each in assessment.contestants
    )
    return Table(shown, lines)


def _cell(metric: Metric, contestant: Contestant) -> Cell:
    figure = metric.figure(contestant)
    bar = None
    if metric.bar and figure.estimate is not None:
        at, known = scaled(1.0), figure.estimate
        low = known.value if known.low is None else known.low
        high = known.value if known.high is None else known.high
        bar = Bar(at(known.value), at(low), at(high))
    return Cell(figure.text, figure.value, figure.interval, bar)


def settings(assessment: Assessment) -> list[Settings]:
    """Return the settings chosen inside the training part."""
    return [
        Settings(
            title=each.title,
            variant=VARIANTS[each.kind],
            validated=f"{percent(each.validated)} on {each.validated_on}",
            facts=tuple(each.settings.items()),
        )
        for each in assessment.contestants
        if each.kind != "dummy"
    ]
