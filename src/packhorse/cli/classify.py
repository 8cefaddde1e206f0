"""`packhorse classify SAVED INPUT -o OUTPUT`."""

from __future__ import annotations

import argparse
from collections import Counter
from functools import partial
from pathlib import Path

from packhorse.cli import options
from packhorse.cli.jobs import run_and_report
from packhorse.config import InputConfig
from packhorse.jobs.journal import Journal
from packhorse.jobs.manifest import RunReport
from packhorse.jobs.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("saved", metavar="SAVED", type=Path, help="folder that assess has saved")
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="CSV, TSV, Parquet, JSONL, text (a line a row), or - for stdin",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUTPUT", type=Path, required=True, help=".jsonl, .csv, .parquet"
    )
    parser.add_argument("--retry-failed", action="store_true", help="label rows that failed again")
    parser.add_argument(
        "--json", action="store_true", help="the last line of stdout is one JSON document"
    )
    reading = parser.add_argument_group("input")
    reading.add_argument(
        "--text-column",
        type=options.text,
        metavar="NAME",
        help="column of the text (default: as it was assessed)",
    )
    reading.add_argument(
        "--template",
        type=options.text,
        metavar="TEXT",
        help='text built from fields: "{title} {body}"',
    )
    reading.add_argument("--limit", type=int, metavar="N", help="read at most N rows")
    options.add_csv_quoting_option(reading)
    options.add_batching_options(parser)


def run(arguments: argparse.Namespace) -> int:
    from packhorse.assess.classify import ClassifyConfig, classify

    config = ClassifyConfig(
        saved=arguments.saved,
        input=arguments.input,
        output=arguments.output,
        reading=InputConfig(
            prompt_column=arguments.text_column,
            template=arguments.template,
            limit=arguments.limit,
            csv_quoting=arguments.csv_quoting,
            row_options="no",
        ),
        batching=options.batching_config(arguments),
        retry_failed=arguments.retry_failed,
    )
    return run_and_report(partial(classify, config), arguments, _summary, done="labelled")


def _summary(report: RunReport) -> str:
    """Counts by state, label and who decided; for the session that just ended, its time."""
    counts = report.counts
    labels: Counter[str] = Counter()
    deciders: Counter[str] = Counter()
    with Journal(Workspace(report.output).journal, read_only=True) as journal:
        for record in journal.records():
            if record.text is not None:
                labels[record.text] += 1
                deciders[(record.note or {}).get("answered_by", "")] += 1
    lines = [f"{counts.rows:,} rows: {counts.completed:,} labelled, {counts.failed:,} failed"]
    lines += [f"  {number:,} x {code}" for code, number in counts.failed_by_code.items()]
    lines.append("labels      " + _listed(labels))
    lines.append("decided by  " + _listed(deciders))
    if report.session is not None:
        seconds = report.session["seconds"]
        lines.append(
            f"time        {seconds.get('generate', 0.0):.3g} s labelling, "
            f"{seconds.get('load', 0.0):.3g} s loading, {seconds['total']:.3g} s in all"
        )
        lines.append(f"memory      {report.session['peak_memory_bytes'] / 1e9:.2f} GB at the peak")
    else:
        lines.append("nothing was left to label")
    lines.append(f"output      {report.output}")
    lines.append(f"manifest    {report.manifest}")
    return "\n".join(lines)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.most_common()) or "none"
