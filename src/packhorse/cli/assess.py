"""`packhorse assess MODEL LABELLED`."""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import replace
from typing import Any

from packhorse.assess.config import AssessConfig
from packhorse.cli import EXIT_DONE, command_line, options, print_json
from packhorse.cli.progress import PlainReporter
from packhorse.errors import ConfigError

_ROWS = ("text_column", "label_column", "group_column", "csv_quoting", "max_rows", "seed")
_MODEL = (
    "instruction", "label_names", "shots", "max_text_tokens", "max_minutes", "model_rows",
)  # fmt: skip
_VERDICT = ("margin", "max_p95", "volume", "price_core_hour", "price_label")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add(parser, AssessConfig, "model", "labelled", "output")
    options.add_json(parser)
    options.add(parser.add_argument_group("rows"), AssessConfig, *_ROWS, "embeddings")
    options.add(parser.add_argument_group("language model"), AssessConfig, *_MODEL)
    options.add(parser.add_argument_group("verdict"), AssessConfig, *_VERDICT)
    options.add_engine(parser, AssessConfig)
    options.add_batching(parser)


def run(arguments: argparse.Namespace) -> int:
    from packhorse.assess.runner import assess
    from packhorse.assess.terminal import table

    config = options.read(arguments, AssessConfig, command=command_line())
    config = replace(config, label_names=tuple(map(_label_name, config.label_names)))
    assessment = assess(config, PlainReporter(sys.stderr))
    width = shutil.get_terminal_size((100, 24)).columns
    print(table(assessment, width, colour=sys.stdout.isatty()))
    print(f"\nreports     {config.output}/report.html, .md, .json")
    if arguments.json:
        verdict = assessment.verdict
        found = {"kind": verdict.kind, "winner": verdict.winner, "reason": verdict.reason}
        print_json({**found, "saved": assessment.saved})
    return EXIT_DONE


def _label_name(given: Any) -> tuple[str, str]:
    label, equals, words = given.partition("=")
    if not equals or not label.strip() or not words.strip():
        raise ConfigError(
            f"--label-name must be LABEL=WORDS, got {given!r}", "name a label and its words"
        )
    return label.strip(), words.strip()
