"""`packhorse assess MODEL LABELLED`."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from packhorse.assess.config import AssessConfig
from packhorse.cli import EXIT_DONE, options
from packhorse.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="catalog name, hub id, folder or GGUF file")
    parser.add_argument("labelled", metavar="LABELLED", help="CSV, TSV, Parquet or JSONL")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=Path,
        default=_default("output"),
        help="where reports and winner go (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON last")
    _add_rows(parser.add_argument_group("rows"))
    _add_model(parser.add_argument_group("the language model's side"))
    verdict = parser.add_argument_group("verdict")
    _number(verdict, "margin", "this much less accuracy is still as good", "SHARE", float)
    _number(verdict, "max_p95", "19 of 20 rows alone must keep this time", "S", float)
    _number(verdict, "volume", "rows a month, for what a month costs", "ROWS", float)
    _number(verdict, "price_core_hour", "of one core for one hour", "MONEY", float)
    _number(verdict, "price_label", "of one labelled row, in the same currency", "MONEY", float)
    options.add_engine_options(parser)
    options.add_batching_options(parser)


def _add_rows(group: argparse._ArgumentGroup) -> None:
    _number(group, "text_column", "column or field of the text", "NAME", options.text)
    _number(group, "label_column", "column or field of the right label", "NAME", options.text)
    _number(group, "group_column", "rows of one group are never split", "NAME", options.text)
    options.add_csv_quoting_option(group)
    _number(group, "max_rows", "of more rows so many are drawn", "N", int)
    _number(group, "seed", "of every split and draw", "N", int)
    group.add_argument(
        "--embeddings",
        metavar="MODEL",
        default=_default("embeddings"),
        help="catalog name or sentence-transformers folder, or none (default: %(default)s)",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    _number(group, "instruction", "what it is told; the labels are added", "TEXT", options.text)
    group.add_argument(
        "--label-name",
        type=options.text,
        action="append",
        default=[],
        metavar="LABEL=WORDS",
        help="what it reads and writes for a label, if not the label; once a label",
    )
    _number(group, "shots", "examples of each label in the few-shot prompt", "N", int)
    _number(group, "max_text_tokens", "it reads so much of a text", "N", int)
    _number(group, "max_minutes", "asking it may take so long; decides how many rows", "M", float)
    _number(group, "model_rows", "test rows it is asked, whatever the time", "N", int)


def _number(
    group: argparse._ArgumentGroup,
    name: str,
    help_text: str,
    metavar: str,
    kind: Callable[[str], object],
) -> None:
    known = _default(name)
    group.add_argument(
        f"--{name.replace('_', '-')}",
        type=kind,
        metavar=metavar,
        default=known,
        help=help_text + ("" if known is None else " (default: %(default)s)"),
    )


def _default(name: str) -> object:
    return options.default(AssessConfig, name)


def run(arguments: argparse.Namespace) -> int:
    from packhorse.assess.runner import assess
    from packhorse.assess.terminal import table
    from packhorse.cli.progress import Plain

    config = AssessConfig(
        model=arguments.model,
        labelled=arguments.labelled,
        text_column=arguments.text_column,
        label_column=arguments.label_column,
        group_column=arguments.group_column,
        output=arguments.output,
        instruction=arguments.instruction,
        label_names=tuple(map(_label_name, arguments.label_name)),
        engine=options.engine_config(arguments),
        batching=options.batching_config(arguments),
        embeddings=None if arguments.embeddings == "none" else arguments.embeddings,
        margin=arguments.margin,
        max_p95=arguments.max_p95,
        volume=arguments.volume,
        price_core_hour=arguments.price_core_hour,
        price_label=arguments.price_label,
        model_rows=arguments.model_rows,
        max_minutes=arguments.max_minutes,
        shots=arguments.shots,
        max_text_tokens=arguments.max_text_tokens,
        max_rows=arguments.max_rows,
        csv_quoting=arguments.csv_quoting,
        seed=arguments.seed,
        allow_pickle=arguments.allow_pickle,
        command=shlex.join(["packhorse", *sys.argv[1:]]),
    )
    assessment = assess(config, Plain(sys.stderr))
    width = shutil.get_terminal_size((100, 24)).columns
    print(table(assessment, width, colour=sys.stdout.isatty()))
    print(f"\nreports     {config.output}/report.html, .md, .json")
    if arguments.json:
        verdict = assessment.verdict
        found = {"kind": verdict.kind, "winner": verdict.winner, "reason": verdict.reason}
        print(json.dumps({**found, "saved": assessment.saved}))
    return EXIT_DONE


def _label_name(given: str) -> tuple[str, str]:
    label, equals, words = given.partition("=")
    if not equals or not label.strip() or not words.strip():
        raise ConfigError(f"--label-name {given!r} names nothing", "write it as LABEL=WORDS")
    return label.strip(), words.strip()
