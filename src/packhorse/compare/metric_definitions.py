"""Metrics of a comparison: name, unit, format, meaning, value, and where reports show each.

`METRICS` is the only place that defines a column of the reports. report.csv and report.json have
all speed and quality metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from packhorse.compare.document import Comparison, Repeat, Trial
from packhorse.compare.report_values import mean, median, speed_up, wasted_share
from packhorse.reports.columns import Column, Heading
from packhorse.reports.formats import (
    Format,
    count,
    gigabytes,
    number,
    one_decimal,
    percent,
    score,
    times,
)

if TYPE_CHECKING:
    from packhorse.evaluation.quality import QualityReport
    from packhorse.evaluation.statistics import Estimate
    from packhorse.evaluation.teacher_forcing import TeacherForcedScores

AnyMetric = TypeVar("AnyMetric", bound="Metric")


@dataclass(frozen=True, slots=True)
class Metric(Column):
    """A figure of a trial.

    Attributes:
        format: from the value to text.
        html: in the tables of report.html as a value, with its interval, or not at all, because
            the table would be too wide.
        markdown: whether report.md shows it.
        terminal_interval: heading of a further terminal column with the interval; None: no column.
    """

    _: KW_ONLY
    terminal: Heading | None = None
    format: Format
    html: Literal["value", "interval", "hidden"] = "value"
    markdown: bool = True
    terminal_interval: Heading | None = None


@dataclass(frozen=True, slots=True)
class SpeedMetric(Metric):
    """A key of `Trial.speed`; value: the figure of one repeat, None if it was not measured."""

    value: Callable[[Repeat], float | None]


@dataclass(frozen=True, slots=True)
class QualityMetric(Metric):
    """A key of `Trial.quality`.

    Attributes:
        value: mean over rows with its interval, None if it was not measured.
        bar_end: value at the end of the bar in report.html; None: the largest one measured.
    """

    value: Callable[[QualityReport, TeacherForcedScores | None], Estimate | None]
    bar_end: float | None = 1.0


@dataclass(frozen=True, slots=True)
class DerivedMetric(Metric):
    """A figure that is computed from speed metrics when a report is written."""

    value: Callable[[Comparison, Trial], float | None]


def _of_run(*path: str) -> Callable[[Repeat], float | None]:
    """Read a value at `path` of a repeat's run metrics."""

    def value_of(repeat: Repeat) -> float | None:
        value: Any = repeat.figures
        for name in path:
            value = None if value is None else value.get(name)
        return value  # type: ignore[no-any-return]

    return value_of


_LATENCY = "from the moment the engine takes the row's batch to the row's last token"
_PADDING = "padding / all prompt positions computed"
_FORCED = (
    "prompt tokens computed one step at a time, because the engine computes only the shortest "
    "prompt's length of a batch at once / all prompt tokens"
)

SPEED_UP = DerivedMetric(
    "speed_up", "Speed-up", "", True, "generate seconds of the baseline / of the trial",
    format=times, value=speed_up, terminal=Heading(("speed", "up")),
)  # fmt: skip
WASTED = DerivedMetric(
    "wasted", "Wasted", "", False, f"{_PADDING}; or {_FORCED}", format=percent,
    value=lambda comparison, trial: wasted_share(trial), terminal=Heading(("wasted", ""), 7),
)  # fmt: skip
METRICS: tuple[Metric, ...] = (
    SpeedMetric("generate_seconds", "Generate", "s", False,
            "wall seconds of the generation stage, without loading and warm-up",
            format=number, value=_of_run("seconds", "generate"), html="interval",
            terminal=Heading(("run", "s")), terminal_interval=Heading(("low–high", "s"), 5)),
    SpeedMetric("wall_seconds", "Wall", "s", False,
            "wall seconds of the whole process, from its start to its end",
            format=number, value=lambda repeat: repeat.wall_seconds, html="hidden"),
    SpeedMetric("load_seconds", "Load", "s", False,
            "wall seconds until the model could take its first row",
            format=number, value=_of_run("seconds", "load"), html="hidden"),
    SpeedMetric("rows_per_second", "Rows", "rows/s", True,
            "rows answered / generate seconds",
            format=number, value=_of_run("rows_per_second"), html="interval",
            terminal=Heading(("rows", "/s"), 1)),
    SpeedMetric("total_tokens_per_second", "All tokens", "tokens/s", True,
            "(prompt tokens + generated tokens) / generate seconds",
            format=number, value=_of_run("total_tokens_per_second"),
            terminal=Heading(("tokens", "/s"), 9)),
    SPEED_UP,
    SpeedMetric("prompt_tokens_per_second", "Prompt tokens", "tokens/s", True,
            "prompt tokens / generate seconds",
            format=number, value=_of_run("prompt_tokens_per_second"), html="hidden",
            markdown=False),
    SpeedMetric("generated_tokens_per_second", "New tokens", "tokens/s", True,
            "generated tokens / generate seconds",
            format=number, value=_of_run("generated_tokens_per_second"), html="hidden"),
    SpeedMetric("latency_p50", "Latency p50", "s", False,
            f"median over rows of the seconds {_LATENCY}",
            format=number, value=_of_run("latency_seconds", "p50"), html="interval",
            terminal=Heading(("p50", "s"), 4)),
    SpeedMetric("latency_p95", "Latency p95", "s", False,
            f"19 of 20 rows took at most this long {_LATENCY}",
            format=number, value=_of_run("latency_seconds", "p95"), html="interval",
            terminal=Heading(("p95", "s"))),
    SpeedMetric("latency_p99", "Latency p99", "s", False,
            "99 of 100 rows took at most this long; not given for fewer than 100 rows",
            format=number, value=_of_run("latency_seconds", "p99")),
    SpeedMetric("first_token_p50", "First token p50", "s", False,
            "median seconds to the row's first token, if the engine reports it",
            format=number, value=_of_run("first_token_seconds", "p50")),
    SpeedMetric("first_token_p95", "First token p95", "s", False,
            "19 of 20 rows had their first token within this time",
            format=number, value=_of_run("first_token_seconds", "p95"), html="hidden"),
    SpeedMetric("seconds_per_token_p50", "Per token p50", "s", False,
            "median over rows of the seconds between two tokens after the first",
            format=number, value=_of_run("seconds_per_token", "p50")),
    SpeedMetric("peak_memory_bytes", "Peak memory", "GB", False,
            "largest resident memory of the trial's process tree (1 GB = 10⁹ bytes)",
            format=gigabytes, value=lambda repeat: repeat.peak_memory_bytes,
            terminal=Heading(("peak", "GB"), 2)),
    WASTED,
    SpeedMetric("processor_seconds", "CPU", "s", False,
            "user and system time of the trial's processes",
            format=number, value=lambda repeat: repeat.processor_seconds),
    SpeedMetric("energy_joules", "Energy", "J", False,
            "energy of the processor package, measured by RAPL; absent if it cannot be read",
            format=number, value=lambda repeat: repeat.energy_joules),
    SpeedMetric("padding_share", "Padding", "", False, _PADDING,
            format=percent, value=_of_run("padding_share"), html="hidden"),
    SpeedMetric("token_by_token_prefill_share", "Forced", "", False, _FORCED,
            format=percent, value=_of_run("token_by_token_prefill_share"), html="hidden"),
    SpeedMetric("batches", "Batches", "", None, "number of batches",
            format=count, value=_of_run("batches"), html="hidden", markdown=False),
    SpeedMetric("generated_tokens", "Generated", "tokens", None, "number of generated tokens",
            format=count, value=_of_run("generated_tokens"), html="hidden", markdown=False),
    QualityMetric("rows_identical", "Rows identical", "", True,
            "rows with exactly the reference's tokens / rows; a row that failed in the trial "
            "counts as different",
            format=percent, value=lambda quality, forced: quality.rows_identical,
            terminal=Heading(("same", "rows"), 3)),
    QualityMetric("first_token_equal", "First token equal", "", True,
            "rows whose first token is the reference's / rows",
            format=percent, value=lambda quality, forced: quality.first_token_equal),
    QualityMetric("matched_prefix", "Matched prefix", "", True,
            "mean over rows of (tokens before the first difference / tokens of the reference)",
            format=score, value=lambda quality, forced: quality.matched_prefix,
            terminal=Heading(("same", "prefix"))),
    QualityMetric("chrf", "chrF", "", True,
            "mean over rows of the F-score of character n-grams against the reference's text, 0 to "
            "100 (sacrebleu)",
            format=one_decimal, value=lambda quality, forced: quality.chrf, bar_end=100.0),
    QualityMetric("cosine", "Cosine", "", True,
            "mean cosine similarity of the sentence embeddings of the two texts; its floor is the "
            "mean of shuffled, unrelated pairs",
            format=score, value=lambda quality, forced: quality.cosine,
            terminal=Heading(("cosine", ""), 6)),
    QualityMetric("kl_divergence", "KL", "nats", False,
            "mean Kullback-Leibler divergence of the next-token distributions on the reference's "
            "text",
            format=number, value=lambda quality, forced: forced.kl_divergence if forced else None,
            bar_end=None, terminal=Heading(("KL", "nats"), 8)),
    QualityMetric("top1_agreement", "Top-1 agreement", "", True,
            "positions of the reference's text where both models find the same token most likely "
            "/ positions",
            format=percent,
            value=lambda quality, forced: forced.top1_agreement if forced else None),
    QualityMetric("label_accuracy", "Label accuracy", "", True,
            "rows whose answer is the row's label / rows",
            format=percent,
            value=lambda quality, forced: (
                quality.labels.label_accuracy if quality.labels else None)),
)  # fmt: skip
SPEED = tuple(metric for metric in METRICS if isinstance(metric, SpeedMetric))
QUALITY = tuple(metric for metric in METRICS if isinstance(metric, QualityMetric))
RAW_VALUES = {
    "wall_seconds": "Wall s",
    "load_seconds": "Load s",
    "generate_seconds": "Generate s",
    "rows_per_second": "Rows/s",
    "batches": "Batches",
    "generated_tokens": "Generated tokens",
    "peak_memory_bytes": "Peak GB",
    "processor_seconds": "CPU s",
    "energy_joules": "Energy J",
}
"""Headings of the raw values of every repeat in report.html."""

GENERAL_NOTES = (
    "Every trial runs in its own process, after a warm-up. Repeats are interleaved: every trial "
    "once, then every trial again, so that a slow minute of the machine affects all of them.",
    "Speed figures are medians over the repeats, with a 95% interval of the median; with fewer "
    "than 6 repeats the interval is the smallest and the largest value.",
    "Accuracy figures are means over rows with 95% intervals for the choice of rows. They say how "
    "close a trial stays to the reference, not how good it is.",
    "Two trials are tied if their difference is within the noise of the repeats.",
    "The Pareto front holds the trials that no other trial beats in both throughput and matched "
    "prefix; its knee is the point where more speed starts to cost much accuracy.",
)
_BY_NAME = {metric.name: metric for metric in METRICS}


def find_metric(name: str) -> Metric:
    """Return the metric of a key in report.json."""
    return _BY_NAME[name]


def measured_metrics(
    comparison: Comparison, metrics: tuple[AnyMetric, ...]
) -> tuple[AnyMetric, ...]:
    """Return the metrics of which at least one trial has a value."""
    return tuple(
        metric
        for metric in metrics
        if any(
            median(trial, metric.name) is not None or mean(trial, metric.name) is not None
            for trial in comparison.trials
        )
    )
