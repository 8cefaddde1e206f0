"""`packhorse status OUTPUT`."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict

from packhorse.cli import EXIT_DONE, options, print_json
from packhorse.jobs.journal import Journal
from packhorse.jobs.workspace import Workspace
from packhorse.storage.urls import file_or_url


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", type=file_or_url, help="output file of the job")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    workspace = Workspace.of(arguments.output)
    with Journal(workspace.journal, read_only=True) as journal:
        journal.verify()
        counts = journal.counts()
        settings = journal.meta("settings")
    written = workspace.manifest.exists() and counts.pending == 0
    finished = written and workspace.is_uploaded
    if arguments.json:
        document = {**asdict(counts), "pending": counts.pending, "finished": finished}
        print_json({**document, "settings": settings})
        return EXIT_DONE
    print(f"{counts.rows:,} rows: {counts.completed:,} completed, {counts.failed:,} failed, "
          f"{counts.pending:,} pending")  # fmt: skip
    for code, number in counts.failed_by_code.items():
        print(f"  {number:,} x {code}")
    if written and not finished:
        print(f"not uploaded: run the same command again; the output is {workspace.output}")
    elif not finished:
        print("unfinished: run the same command again to continue, or write finished rows with\n"
              f"  packhorse export {shlex.quote(workspace.name)}")  # fmt: skip
    return EXIT_DONE
