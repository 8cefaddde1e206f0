"""`packhorse status OUTPUT`."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict
from pathlib import Path

from packhorse.cli import EXIT_DONE, options, print_json
from packhorse.jobs.journal import Journal
from packhorse.jobs.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="output file of the job")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    workspace = Workspace(arguments.output)
    with Journal(workspace.journal, read_only=True) as journal:
        journal.verify()
        counts = journal.counts()
        settings = journal.meta("settings")
    finished = workspace.manifest.exists() and counts.pending == 0
    if arguments.json:
        document = {**asdict(counts), "pending": counts.pending, "finished": finished}
        print_json({**document, "settings": settings})
        return EXIT_DONE
    print(f"{counts.rows:,} rows: {counts.completed:,} completed, {counts.failed:,} failed, "
          f"{counts.pending:,} pending")  # fmt: skip
    for code, number in counts.failed_by_code.items():
        print(f"  {number:,} x {code}")
    if not finished:
        print("unfinished: run the same command again to continue, or write finished rows with\n"
              f"  packhorse export {shlex.quote(str(arguments.output))}")  # fmt: skip
    return EXIT_DONE
