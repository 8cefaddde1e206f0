"""What verbs that carry out a job have in common: display, hint, summary, exit code."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable

from packhorse.cli import EXIT_DONE, EXIT_FAILED_ROWS
from packhorse.cli.progress import observer_for
from packhorse.errors import Interrupted
from packhorse.jobs.frame import ProgressReporter
from packhorse.jobs.manifest import RunReport


def run_and_report(
    job: Callable[[ProgressReporter], RunReport],
    arguments: argparse.Namespace,
    summary: Callable[[RunReport], str],
    *,
    done: str,
) -> int:
    """Carries a job out and says how it went; the exit code.

    arguments: of the command line, `output` and `json` among them. done: what its rows are when
    they are done ("finished"), for the hint after an interruption.
    """
    try:
        report = job(observer_for(sys.stderr))
    except Interrupted:
        output = shlex.quote(str(arguments.output))
        print(
            f"packhorse: {done} rows are kept; run the same command again to go on, or see\n"
            f"  packhorse status {output}",
            file=sys.stderr,
        )
        raise
    print(summary(report), file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps(report.to_json()))
    return EXIT_FAILED_ROWS if report.counts.failed else EXIT_DONE
