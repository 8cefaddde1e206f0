"""`packhorse load-test URL INPUT --rate R`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from packhorse.cli import EXIT_DONE, EXIT_FAILED_ROWS, options
from packhorse.cli.serve import KEY_VARIABLE
from packhorse.config import InputConfig
from packhorse.errors import ConfigError
from packhorse.load_test.config import Goals, LoadTestConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="of the server, e.g. http://127.0.0.1:8000")
    parser.add_argument(
        "input", metavar="INPUT", type=Path, help="rows to send, as packhorse run reads them"
    )
    parser.add_argument(
        "--rate",
        type=float,
        nargs="+",
        metavar="R",
        default=list(options.default(LoadTestConfig, "rates")),
        help="requests a second; several are tried one after the other, inf sends all at once "
        "(default: 1)",
    )
    parser.add_argument(
        "--requests",
        type=int,
        metavar="N",
        default=options.default(LoadTestConfig, "requests"),
        help="at each rate (default: %(default)s)",
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="of rows that bring none")
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        default=options.default(LoadTestConfig, "seed"),
        help="of the Poisson arrivals (default: %(default)s)",
    )
    goals = parser.add_argument_group("goals: what makes an answer a good one")
    goals.add_argument("--goal-first-token-ms", type=float, metavar="MS")
    goals.add_argument("--goal-answer-ms", type=float, metavar="MS")
    goals.add_argument("--goal-per-token-ms", type=float, metavar="MS")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="report.json and .md")
    parser.add_argument(
        "--json", action="store_true", help="the last line of stdout is one JSON document"
    )
    options.add_reading_options(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        from packhorse.load_test.report import terminal, write_reports
        from packhorse.load_test.runner import load_test
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        raise ConfigError("load-test needs httpx", "pip install 'packhorse[serve]'") from error

    config = LoadTestConfig(
        url=arguments.url,
        input=arguments.input,
        rates=tuple(arguments.rate),
        requests=arguments.requests,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
        goals=Goals(
            _as_seconds(arguments.goal_first_token_ms),
            _as_seconds(arguments.goal_answer_ms),
            _as_seconds(arguments.goal_per_token_ms),
        ),
        reading=InputConfig(
            arguments.prompt_column,
            arguments.template,
            arguments.system,
            arguments.limit,
            csv_quoting=arguments.csv_quoting,
            row_options=arguments.row_options,
        ),
        api_key=os.environ.get(KEY_VARIABLE),
    )
    test = load_test(config, lambda text: print(f"packhorse: {text}", file=sys.stderr, flush=True))
    if arguments.output is not None:
        write_reports(test, arguments.output)
    print(terminal(test), file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps(test.to_json()))
    return EXIT_FAILED_ROWS if any(trial.errors for trial in test.trials) else EXIT_DONE


def _as_seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
