"""Figures of the contestants: name, unit, meaning, value, and where reports show each.

`metrics` is the only place that defines a column of the reports. report.md and report.html show
all figures that were measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from packhorse.assess.document import Assessment, Contestant
from packhorse.evaluation.statistics import Estimate
from packhorse.reports.columns import Column, Heading
from packhorse.reports.formats import ABSENT, Format, finite, gigabytes, number, percent, show


@dataclass(frozen=True, slots=True)
class Figure:
    """One cell.

    Attributes:
        text: the value as text.
        value: what the column is sorted by.
        interval: the interval as text; "" for none.
        estimate: value and interval, if there is one.
    """

    text: str
    value: float | None = None
    interval: str = ""
    estimate: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Metric(Column):
    """A figure of a contestant.

    Attributes:
        figure: the figure of one contestant.
        bar: whether report.html draws its interval as a bar.
        interval_on_terminal: whether the terminal shows the interval beside the value.
    """

    _: KW_ONLY
    terminal: Heading
    figure: Callable[[Contestant], Figure]
    bar: bool = False
    interval_on_terminal: bool = False


def metrics(assessment: Assessment) -> list[Metric]:
    """Return the figures of which at least one contestant has a value, most important first."""
    count = assessment.model_rows
    same = f"on the {count:,} test rows of the language model"
    defined = [
        Metric("accuracy", f"Accuracy, same {count:,} rows", "", True,
               f"correct answers / rows, {same}; 95% Wilson interval",
               figure=lambda each: _estimated(each.shared.accuracy), bar=True,
               terminal=Heading(("right", f"of {count:,}")), interval_on_terminal=True),
        Metric("all", "Accuracy, all its rows", "", True,
               "correct answers / test rows the contestant answered: for classic contestants the "
               "whole test part; 95% Wilson interval",
               figure=lambda each: _estimated(each.figures.accuracy),
               terminal=Heading(("right", "of all"), 3)),
        Metric("f1", "Macro-F1", "", True,
               f"mean over labels of F1, {same}; 95% bootstrap interval",
               figure=lambda each: _estimated(each.shared.macro_f1), bar=True,
               terminal=Heading(("macro", "F1"), 5)),
        Metric("balanced", "Balanced accuracy", "", True,
               f"mean over labels of recall, {same}; 95% bootstrap interval",
               figure=lambda each: _estimated(each.shared.balanced_accuracy), bar=True,
               terminal=Heading(("balanced", "accuracy"), 9)),
        Metric("calibration", "Calibration error", "", False,
               f"expected calibration error over 10 bins {same}: mean gap between confidence and "
               "accuracy",
               figure=lambda each: _plain(each.shared.calibration_error, _three_decimals),
               terminal=Heading(("calib.", "error"), 6)),
        Metric("brier", "Brier", "", False, f"Brier score {same}, from 0 to 2",
               figure=lambda each: _plain(each.shared.brier, _three_decimals),
               terminal=Heading(("Brier", "score"), 10)),
        Metric("invalid", "No label", "", False,
               f"answers that are none of the labels / rows, {same}; they count as wrong",
               figure=lambda each: _plain(each.shared.invalid / each.shared.rows, percent),
               terminal=Heading(("no", "label"), 2)),
        Metric("seconds", "Time per 1,000 rows", "s", False,
               "wall seconds per 1,000 rows, in batches, after loading",
               figure=lambda each: _cost(each, "seconds", number),
               terminal=Heading(("s per", "1,000"), 4)),
        Metric("core_seconds", "Work per 1,000 rows", "core-s", False,
               "core-seconds per 1,000 rows: processor time summed over cores",
               figure=lambda each: _cost(each, "core_seconds", number),
               terminal=Heading(("core-s", "1,000"))),
        Metric("p50", "One row, p50", "s", False,
               "median seconds of a single row, measured in a separate process",
               figure=lambda each: _cost(each, "p50", number),
               terminal=Heading(("p50", "s"), 8)),
        Metric("p95", "One row, p95", "s", False,
               "19 of 20 single rows took at most this long",
               figure=lambda each: _cost(each, "p95", number), terminal=Heading(("p95", "s"))),
        Metric("memory", "Peak memory", "GB", False,
               "largest resident memory of the classifying process (1 GB = 10⁹ bytes)",
               figure=lambda each: _cost(each, "peak_memory_bytes", gigabytes),
               terminal=Heading(("peak", "GB"), 1)),
        Metric("disk", "On disk", "MB", False,
               "size of all files it reads (1 MB = 10⁶ bytes)",
               figure=lambda each: _cost(each, "bytes_on_disk", _megabytes),
               terminal=Heading(("disk", "MB"), 7)),
        Metric("start", "Cold start", "s", False,
               "seconds from the start of a process to its first answer, with the files in the "
               "page cache",
               figure=lambda each: _cost(each, "cold_start", number),
               terminal=Heading(("cold", "start"), 11)),
    ]  # fmt: skip
    everyone = assessment.contestants
    return [each for each in defined if any(each.figure(c).text != ABSENT for c in everyone)]


def interval_text(estimate: Estimate) -> str:
    """Return low–high in per cent; "" if there is no interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{percent(estimate.low)}–{percent(estimate.high)}"


def _three_decimals(value: float) -> str:
    return f"{value:.3f}"


def _megabytes(value: float) -> str:
    return number(value / 1e6)


def _plain(value: float | None, form: Format) -> Figure:
    return Figure(show(value, form), finite(value))


def _cost(contestant: Contestant, name: str, form: Format) -> Figure:
    value = None if contestant.costs is None else float(getattr(contestant.costs, name))
    return _plain(value, form)


def _estimated(estimate: Estimate) -> Figure:
    return Figure(percent(estimate.value), estimate.value, interval_text(estimate), estimate)
