"""`packhorse run MODEL INPUT -o OUTPUT`."""

from __future__ import annotations

import argparse
from functools import partial

from packhorse.cli import options
from packhorse.cli.jobs import run_and_report
from packhorse.cli.summary import run_summary
from packhorse.config import JobConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ("model", "input", "output", "retry_failed", "warmup_rows")
    options.add(parser, JobConfig, *names)
    options.add_json(parser)
    options.add_engine(parser, JobConfig)
    options.add_batching(parser)
    options.add_sampling(parser)
    options.add_input(parser)
    options.add_prompts(parser)
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    from packhorse.jobs.run_rows import run as run_job

    config = options.read(arguments, JobConfig)
    job = partial(run_job, config)
    return run_and_report(job, config.output, run_summary, json=arguments.json, done="finished")
