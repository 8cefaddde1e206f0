"""`packhorse decide MODEL INPUT --questions FILE -o OUTPUT`."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from functools import partial

from packhorse.cli import options
from packhorse.cli.jobs import run_and_report
from packhorse.config import InputConfig
from packhorse.decide.job import DecideConfig, decide
from packhorse.decide.questions import read_questions
from packhorse.jobs.journal import Journal
from packhorse.jobs.manifest import RunReport
from packhorse.jobs.workspace import Workspace

_SHOWN = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ("model", "input", "output", "questions", "labels", "permutations", "divide_prior")
    options.add(parser, DecideConfig, *names, "retry_failed")
    options.add_json(parser)
    options.add_engine(parser, DecideConfig)
    options.add_batching(parser)
    names = ("prompt_column", "template", "system", "id_column", "limit", "csv_quoting", "date")
    options.add_input(parser, *names)
    options.add_output(parser, "keep")


def run(arguments: argparse.Namespace) -> int:
    reading = options.read(arguments, InputConfig, row_options="no")
    config = options.read(arguments, DecideConfig, reading=reading)
    job = partial(decide, config)
    summary = partial(_summary, config)
    return run_and_report(job, config.output, summary, json=arguments.json, done="answered")


def _summary(config: DecideConfig, report: RunReport) -> str:
    """Return counts by state and answer, figures of the labelled rows, and the time."""
    counts = report.counts
    questions = read_questions(config.questions)
    answers: dict[str, Counter[str]] = {question.name: Counter() for question in questions}
    with Journal(Workspace(report.output).journal, read_only=True) as journal:
        entry = journal.meta("decide") or {"report": []}
        figures = {each["name"]: each for each in entry["report"]}
        for record in journal.records():
            if record.text is not None:
                values = json.loads(record.text)
                for name, found in answers.items():
                    found[str(values[name])] += 1
    lines = [f"{counts.rows:,} rows: {counts.completed:,} answered, {counts.failed:,} failed"]
    lines += [f"  {number:,} x {code}" for code, number in counts.failed_by_code.items()]
    for name, found in answers.items():
        listed = ", ".join(f"{each} {number:,}" for each, number in found.most_common(_SHOWN))
        lines.append(f"{name:<11} {listed or 'none'}")
        if "accuracy" in (known := figures.get(name, {})):
            lines.append(
                f"            on {known['labelled_rows']:,} labelled rows: accuracy "
                f"{known['accuracy']:.1%}, Brier {known['brier_before']:.3f} -> "
                f"{known['brier_after']:.3f}, calibration error "
                f"{known['calibration_error_before']:.3f} -> {known['calibration_error_after']:.3f}"
            )
    if report.session is not None:
        seconds = report.session["seconds"]
        lines.append(
            f"time        {seconds.get('generate', 0.0):.3g} s answering, "
            f"{seconds.get('calibrate', 0.0):.3g} s calibrating, "
            f"{seconds.get('load', 0.0):.3g} s loading, {seconds['total']:.3g} s in all"
        )
        lines.append(f"memory      {report.session['peak_memory_bytes'] / 1e9:.2f} GB at the peak")
    else:
        lines.append("nothing was left to answer")
    lines += [f"output      {report.output}", f"manifest    {report.manifest}"]
    return "\n".join(lines)
