"""`packhorse run MODEL INPUT -o OUTPUT`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from packhorse.cli import options
from packhorse.cli.jobs import run_and_report
from packhorse.cli.summary import run_summary
from packhorse.config import JobConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="catalog name, hub id, folder or GGUF file")
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="JSONL, OpenAI batch lines, CSV, TSV, Parquet, text (a prompt a line), or - for stdin",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUTPUT", type=Path, required=True, help=".jsonl, .csv, .parquet"
    )
    parser.add_argument("--retry-failed", action="store_true", help="run rows that failed again")
    parser.add_argument(
        "--json", action="store_true", help="the last line of stdout is one JSON document"
    )
    parser.add_argument(
        "--warm-up-rows",
        type=int,
        metavar="N",
        default=options.default(JobConfig, "warmup_rows"),
        help="run N rows unrecorded before timing starts, for measurements",
    )
    options.add_engine_options(parser)
    options.add_batching_options(parser)
    options.add_decoding_options(parser)
    options.add_served_model_name_option(options.add_reading_options(parser))


def run(arguments: argparse.Namespace) -> int:
    from packhorse.jobs.run_rows import run as run_job

    config = JobConfig(
        model=arguments.model,
        input=arguments.input,
        output=arguments.output,
        engine=options.engine_config(arguments),
        batching=options.batching_config(arguments),
        decoding=options.decoding_config(arguments),
        reading=options.reading_config(arguments),
        retry_failed=arguments.retry_failed,
        allow_pickle=arguments.allow_pickle,
        warmup_rows=arguments.warm_up_rows,
    )
    return run_and_report(partial(run_job, config), arguments, run_summary, done="finished")
