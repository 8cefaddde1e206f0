"""`packhorse compare MODEL INPUT`."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys

from packhorse.cli import EXIT_DONE, command_line, options, print_json
from packhorse.cli.progress import PlainReporter
from packhorse.compare.config import CompareConfig
from packhorse.compare.verdict import UserLimits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add(parser, CompareConfig, "model", "input", "output", "resume", "allow_pickle")
    options.add_json(parser)
    grid = parser.add_argument_group("techniques (every combination is tried)")
    options.add(grid, CompareConfig, "engines", "quantizations", "batchings")
    options.add(grid, CompareConfig, "batch_size", "max_batch_tokens")
    work = parser.add_argument_group("measurement")
    options.add(work, CompareConfig, "sample", "repeats", "max_new_tokens", "warmup_rows")
    accuracy = parser.add_argument_group("accuracy")
    options.add(accuracy, CompareConfig, "reference", "embeddings", "labels", "teacher_forcing")
    options.add(parser.add_argument_group("limits for the recommendation"), UserLimits)
    names = ("prompt_column", "template", "system", "csv_quoting", "served_model_name", "date")
    options.add_input(parser, *names, "row_options", "messages_format")
    options.add_prompts(parser)


def run(arguments: argparse.Namespace) -> int:
    from packhorse.compare.runner import compare
    from packhorse.compare.terminal import table

    config = options.read(arguments, CompareConfig, command=command_line())
    try:
        comparison = compare(config, PlainReporter(sys.stderr))
    except KeyboardInterrupt:
        folder = shlex.quote(str(config.output))
        print(
            f"packhorse: finished measurements are kept in {folder}; continue with --resume",
            file=sys.stderr,
        )
        raise
    width = shutil.get_terminal_size((100, 24)).columns
    print(table(comparison, width, colour=sys.stdout.isatty()))
    print(f"\nreports     {config.output}/report.html, .md, .csv, .json")
    if arguments.json:
        print_json(comparison.to_json()["recommendation"])
    return EXIT_DONE
