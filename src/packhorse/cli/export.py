"""`packhorse export OUTPUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from packhorse.cli import EXIT_DONE, options
from packhorse.config import OUTPUT_SUFFIXES, OutputConfig
from packhorse.jobs.frame import export_journal
from packhorse.jobs.journal import Journal
from packhorse.jobs.workspace import Workspace
from packhorse.storage.urls import file_or_url


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", type=file_or_url, help="output file of the job")
    parser.add_argument(
        "--to",
        metavar="FILE",
        type=Path,
        help="write to this file (default: OUTPUT with .partial before its suffix)",
    )
    same = {"default": "those that the job keeps"}
    options.add(parser, OutputConfig, "keep", keep={"type": options.columns, **same})


def run(arguments: argparse.Namespace) -> int:
    workspace = Workspace.of(arguments.output)
    output = workspace.output
    known = (each for each in OUTPUT_SUFFIXES if output.name.lower().endswith(each))
    length = len(max(known, key=len, default=""))
    stem, suffix = output.name[: len(output.name) - length], output.name[-length or None :]
    target = arguments.to or output.with_name(f"{stem}.partial{suffix if length else ''}")
    with Journal(workspace.journal, read_only=True) as journal:
        counts = journal.counts()
        written = export_journal(journal, target, writing=options.read(arguments, OutputConfig))
    print(f"{target}: {written:,} rows, {counts.pending:,} of them pending")
    return EXIT_DONE
