"""The figures of contestants as columns, one vocabulary for all reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from packhorse.assess.document import Assessment, Contestant
from packhorse.evaluation.statistics import Estimate
from packhorse.reports.formats import ABSENT, finite, gigabytes, number, percent, show


@dataclass(frozen=True, slots=True)
class Figure:
    """value: what a column is sorted by. around: the interval as text, "" for none."""

    text: str
    value: float | None = None
    around: str = ""
    estimate: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of every contestant. more: whether more is better, None where neither is.
    meaning: the definition, one sentence. lines: the heading in two lines, for a terminal."""

    name: str
    heading: str
    unit: str
    lines: tuple[str, str]
    more: bool | None
    meaning: str
    figure: Callable[[Contestant], Figure]


def columns(assessment: Assessment) -> list[Column]:
    """The figures of contestants, in the order of their weight."""
    count = assessment.model_rows
    same = f"on the {count:,} test rows that the language model was asked"
    made = [
        Column("accuracy", f"Accuracy, same {count:,} rows", "", ("right", f"of {count:,}"), True,
               f"right answers / rows, {same}; 95% Wilson interval",
               lambda each: estimate_figure(each.shared.accuracy)),
        Column("all", "Accuracy, all its rows", "", ("right", "of all"), True,
               "right answers / test rows it was asked: for classic contestants the whole test "
               "part; 95% Wilson interval",
               lambda each: estimate_figure(each.figures.accuracy)),
        Column("f1", "Macro-F1", "", ("macro", "F1"), True,
               f"mean over labels of F1, {same}; 95% bootstrap interval",
               lambda each: estimate_figure(each.shared.macro_f1)),
        Column("balanced", "Balanced accuracy", "", ("balanced", "accuracy"), True,
               f"mean over labels of recall, {same}; 95% bootstrap interval",
               lambda each: estimate_figure(each.shared.balanced_accuracy)),
        Column("calibration", "Calibration error", "", ("calib.", "error"), False,
               f"expected calibration error over 10 bins {same}: how far confidence and accuracy "
               "are apart",
               lambda each: plain_figure(each.shared.calibration_error, share)),
        Column("brier", "Brier", "", ("Brier", "score"), False,
               f"Brier score {same}, from 0 to 2",
               lambda each: plain_figure(each.shared.brier, share)),
        Column("invalid", "No label", "", ("no", "label"), False,
               f"answers that are none of the labels / rows, {same}; they count as wrong",
               lambda each: plain_figure(each.shared.invalid / each.shared.rows, percent)),
        Column("seconds", "Time per 1,000 rows", "s", ("s per", "1,000"), False,
               "wall seconds per 1,000 rows, many rows at a time, loaded already",
               lambda each: cost_figure(each, "seconds", number)),
        Column("core_seconds", "Work per 1,000 rows", "core-s", ("core-s", "1,000"), False,
               "core-seconds per 1,000 rows: processor time of all cores together",
               lambda each: cost_figure(each, "core_seconds", number)),
        Column("p50", "One row, p50", "s", ("p50", "s"), False,
               "median seconds of one row alone, in a process of its own",
               lambda each: cost_figure(each, "p50", number)),
        Column("p95", "One row, p95", "s", ("p95", "s"), False,
               "19 of 20 rows alone took at most this long",
               lambda each: cost_figure(each, "p95", number)),
        Column("memory", "Peak memory", "GB", ("peak", "GB"), False,
               "largest resident memory of the process that answers (1 GB = 10⁹ bytes)",
               lambda each: cost_figure(each, "peak_memory_bytes", gigabytes)),
        Column("disk", "On disk", "MB", ("disk", "MB"), False,
               "size of all files it reads (1 MB = 10⁶ bytes)",
               lambda each: cost_figure(each, "bytes_on_disk", megabytes)),
        Column("start", "Cold start", "s", ("cold", "start"), False,
               "seconds from the start of a process to its first answer, files in memory already",
               lambda each: cost_figure(each, "cold_start", number)),
    ]  # fmt: skip
    everybody = assessment.contestants
    return [column for column in made if any(column.figure(c).text != ABSENT for c in everybody)]


def share(value: float) -> str:
    return f"{value:.3f}"


def megabytes(value: float) -> str:
    return number(value / 1e6)


def plain_figure(value: float | None, form: Callable[[float], str]) -> Figure:
    return Figure(show(value, form), finite(value))


def cost_figure(contestant: Contestant, name: str, form: Callable[[float], str]) -> Figure:
    value = None if contestant.costs is None else float(getattr(contestant.costs, name))
    return plain_figure(value, form)


def estimate_figure(estimate: Estimate) -> Figure:
    return Figure(percent(estimate.value), estimate.value, interval_text(estimate), estimate)


def interval_text(estimate: Estimate) -> str:
    """low–high in per cent; "" where there is no interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{percent(estimate.low)}–{percent(estimate.high)}"
