"""Run a job with a progress display, a summary and an exit code."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from packhorse.cli import EXIT_DONE, EXIT_FAILED_ROWS, print_json
from packhorse.cli.progress import reporter_for
from packhorse.errors import ConfigError, Interrupted
from packhorse.jobs.frame import ProgressReporter
from packhorse.jobs.manifest import RunReport
from packhorse.storage.urls import public_name


def run_and_report(
    job: Callable[[ProgressReporter], RunReport],
    output: Path | str,
    summary: Callable[[RunReport], str],
    *,
    json: bool,
    done: str,
) -> int:
    """Run a job, print its summary, and return the exit code.

    Args:
        job: Runs the job, given its progress reporter.
        output: Output of the job.
        summary: Formats the report for a terminal.
        json: Print the report as JSON on standard output, and the summary on standard error.
        done: State of a row that has a result ("finished"), for the hint after an interruption.
    """
    is_streamed = str(output) == "-"
    if is_streamed and json:
        raise ConfigError(
            "--json and -o - both write to standard output", "leave --json out, or name a file"
        )
    try:
        report = job(reporter_for(sys.stderr))
    except Interrupted:
        status = f", or see\n  packhorse status {shlex.quote(public_name(output))}"
        print(
            f"packhorse: {done} rows are kept; run the same command again to continue"
            f"{'' if is_streamed else status}",
            file=sys.stderr,
        )
        raise
    print(summary(report), file=sys.stderr if json or is_streamed else sys.stdout)
    if json:
        print_json(report.to_json())
    return EXIT_FAILED_ROWS if report.counts.failed else EXIT_DONE
