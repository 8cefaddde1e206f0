"""`packhorse run MODEL INPUT... -o OUTPUT`."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from packhorse.cli import EXIT_DONE, EXIT_FAILED_ROWS, EXIT_REFUSED, options, print_json
from packhorse.cli.jobs import run_and_report
from packhorse.cli.progress import reporter_for
from packhorse.cli.summary import run_summary
from packhorse.config import OUTPUT_SUFFIXES, JobConfig
from packhorse.errors import ConfigError, InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ("model", "input", "output", "ordered", "retry_failed", "warmup_rows")
    options.add(parser, JobConfig, *names, output={"required": False})
    parser.add_argument(
        "more_inputs",
        metavar="INPUT",
        nargs="*",
        help="further inputs of the same format, read after the first as one input",
    )
    parser.add_argument(
        "--output-dir",
        metavar="FOLDER",
        type=Path,
        help="in place of -o: one job and one output per input file, in this folder",
    )
    parser.add_argument(
        "--output-suffix",
        metavar="SUFFIX",
        choices=OUTPUT_SUFFIXES,
        default=".jsonl",
        help="suffix of the outputs in --output-dir (default: .jsonl)",
    )
    options.add_json(parser)
    options.add_engine(parser, JobConfig)
    options.add_batching(parser)
    options.add_sampling(parser)
    options.add_input(parser)
    options.add_prompts(parser)
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    from packhorse.jobs.run_rows import run as run_job

    has_output = "output" in options.given(arguments, JobConfig)
    if has_output == (arguments.output_dir is not None):
        raise ConfigError(
            "both -o and --output-dir are given" if has_output else "no output is given",
            "name a file with -o, or a folder for one output per input with --output-dir",
        )
    more = {"more_inputs": tuple(arguments.more_inputs)}
    if not has_output:
        config = options.read(arguments, JobConfig, output=arguments.output_dir, **more)
        return _run_each(config, arguments)
    config = options.read(arguments, JobConfig, **more)
    job = partial(run_job, config)
    return run_and_report(job, config.output, run_summary, json=arguments.json, done="finished")


def _run_each(config: JobConfig, arguments: argparse.Namespace) -> int:
    from packhorse.jobs.run_rows import run_each

    failed, unread, reports = 0, 0, []
    suffix = arguments.output_suffix
    jobs = run_each(config, arguments.output_dir, suffix, reporter_for(sys.stderr))
    for output, outcome in jobs:
        if isinstance(outcome, InputError):
            unread += 1
            print(f"packhorse: {outcome}\n  hint: {outcome.hint}", file=sys.stderr)
            continue
        failed += outcome.counts.failed
        reports.append(outcome.to_json())
        print(
            f"{output}\n{run_summary(outcome)}", file=sys.stderr if arguments.json else sys.stdout
        )
    if arguments.json:
        print_json({"outputs": reports, "unread_inputs": unread})
    return EXIT_REFUSED if unread else EXIT_FAILED_ROWS if failed else EXIT_DONE
