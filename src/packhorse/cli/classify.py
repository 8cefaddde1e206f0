"""`packhorse classify SAVED INPUT -o OUTPUT`."""

from __future__ import annotations

import argparse
from collections import Counter
from functools import partial

from packhorse.assess.classify import ClassifyConfig, classify
from packhorse.cli import options
from packhorse.cli.jobs import run_and_report
from packhorse.config import InputConfig
from packhorse.jobs.journal import Journal
from packhorse.jobs.manifest import RunReport
from packhorse.jobs.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add(parser, ClassifyConfig)
    options.add_json(parser)
    text_column = {
        "flags": ("--text-column",),
        "help": "column that holds the text",
        "default": "the column that was assessed",
    }
    names = ("prompt_column", "id_column", "template", "limit", "csv_quoting")
    options.add_input(parser, *names, prompt_column=text_column)
    options.add_output(parser, "keep")
    options.add_batching(parser)


def run(arguments: argparse.Namespace) -> int:
    reading = options.read(arguments, InputConfig, row_options="no")
    config = options.read(arguments, ClassifyConfig, reading=reading)
    job = partial(classify, config)
    return run_and_report(job, config.output, _summary, json=arguments.json, done="labelled")


def _summary(report: RunReport) -> str:
    """Return counts by state, label and deciding model, and the time of this session."""
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
    output, manifest = report.names
    lines += [f"output      {output}"] + [f"manifest    {manifest}"] * bool(manifest)
    return "\n".join(lines)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.most_common()) or "none"
