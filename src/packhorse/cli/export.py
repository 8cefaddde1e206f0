"""`packhorse export OUTPUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from packhorse.cli import EXIT_DONE, options
from packhorse.config import OutputConfig
from packhorse.jobs.frame import export_journal
from packhorse.jobs.journal import Journal
from packhorse.jobs.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="output file of the job")
    parser.add_argument(
        "--to",
        metavar="FILE",
        type=Path,
        help="write to this file (default: OUTPUT with .partial before its suffix)",
    )
    same = {"default": "those that the job keeps"}
    options.add(parser, OutputConfig, "keep", keep={"type": options.columns, **same})


def run(arguments: argparse.Namespace) -> int:
    output: Path = arguments.output
    target = arguments.to or output.with_name(f"{output.stem}.partial{output.suffix}")
    with Journal(Workspace(output).journal, read_only=True) as journal:
        counts = journal.counts()
        written = export_journal(journal, target, writing=options.read(arguments, OutputConfig))
    print(f"{target}: {written:,} rows, {counts.pending:,} of them pending")
    return EXIT_DONE
