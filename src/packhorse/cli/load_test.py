"""`packhorse load-test URL INPUT --rate R`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from packhorse.cli import EXIT_DONE, EXIT_FAILED_ROWS, options, print_json, print_message
from packhorse.cli.serve import KEY_VARIABLE
from packhorse.errors import ConfigError
from packhorse.load_test.config import Goals, LoadTestConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add(parser, LoadTestConfig)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="write report.json and report.md to this folder",
    )
    options.add_json(parser)
    options.add(parser.add_argument_group("goals of a good answer"), Goals)
    names = ("prompt_column", "template", "system", "limit", "csv_quoting", "row_options")
    options.add_input(parser, *names, "messages_format")


def run(arguments: argparse.Namespace) -> int:
    try:
        from packhorse.load_test.report import terminal, write_reports
        from packhorse.load_test.runner import load_test
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        raise ConfigError("load-test needs httpx", "pip install 'packhorse[serve]'") from error

    config = options.read(arguments, LoadTestConfig, api_key=os.environ.get(KEY_VARIABLE))
    test = load_test(config, print_message)
    if arguments.output is not None:
        write_reports(test, arguments.output)
    print(terminal(test), file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print_json(test.to_json())
    return EXIT_FAILED_ROWS if any(trial.errors for trial in test.trials) else EXIT_DONE
