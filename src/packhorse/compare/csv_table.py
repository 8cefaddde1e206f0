"""Render a comparison as report.csv."""

from __future__ import annotations

import csv
import io

from packhorse.compare.document import Comparison, Trial
from packhorse.compare.metric_definitions import QUALITY, SPEED, Metric
from packhorse.compare.report_values import baseline, bounds, mean, median, speed_up
from packhorse.reports.formats import finite
from packhorse.reports.text import visible

Row = dict[str, str | float | int | None]


def csv_text(comparison: Comparison) -> str:
    """Return one line per trial.

    Columns: FIGURE_median, _low, _high of every speed metric, NAME_mean, _low, _high of every
    quality metric, then the other notes. A cell is empty if the value was not measured. Times are
    seconds, sizes bytes, shares 0 to 1, chrF 0 to 100; speed_up is relative to the trial in
    speed_up_over.
    """
    rows = [_csv_row(comparison, trial) for trial in comparison.trials]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(comparison: Comparison, trial: Trial) -> Row:
    base = baseline(comparison)
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
        "speed_up": speed_up(comparison, trial),
        "speed_up_over": base.name if base else "",
    }
    for speed in SPEED:
        row |= _csv_cells(trial, speed, "median", median(trial, speed.name))
    for quality in QUALITY:
        row |= _csv_cells(trial, quality, "mean", mean(trial, quality.name))
    noted = dict.fromkeys(name for each in comparison.trials for name in each.quality_notes)
    row |= {name: finite(trial.quality_notes.get(name)) for name in noted}
    return row | {"flags": visible("; ".join(trial.flags)), "command": trial.command}


def _csv_cells(trial: Trial, item: Metric, middle: str, value: float | None) -> Row:
    low, high = bounds(trial.speed.get(item.name) or trial.quality.get(item.name)) or (None, None)
    return {f"{item.name}_{middle}": value, f"{item.name}_low": low, f"{item.name}_high": high}
