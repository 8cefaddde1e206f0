"""`packhorse compare MODEL INPUT`."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from pathlib import Path

from packhorse.cli import EXIT_DONE, options
from packhorse.compare.config import CompareConfig
from packhorse.compare.verdict import UserLimits
from packhorse.config import InputConfig


def _listed(name: str) -> str:
    return ",".join(options.default(CompareConfig, name))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="catalog name, hub id, folder or GGUF file")
    parser.add_argument("input", metavar="INPUT", help="the rows to compare on, as for run")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=Path,
        default=options.default(CompareConfig, "output"),
        help="where the reports go (default: %(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with what was interrupted")
    parser.add_argument("--json", action="store_true", help="print the recommendation as JSON last")
    options.add_pickle_option(parser)
    grid = parser.add_argument_group("techniques (comma-separated; every combination is tried)")
    for name in ("engines", "quantizations", "batchings"):
        grid.add_argument(
            f"--{name}",
            type=options.names,
            metavar="LIST",
            default=_listed(name),
            help="default: %(default)s",
        )
    grid.add_argument(
        "--batch-size", type=int, metavar="N", default=options.default(CompareConfig, "batch_size")
    )
    grid.add_argument("--max-batch-tokens", type=int, metavar="N")
    work = parser.add_argument_group("work")
    for name, help_text in (
        ("sample", "rows drawn from the input"),
        ("repeats", "runs of every combination, interleaved"),
        ("max_new_tokens", "tokens generated at most a row"),
        ("warmup_rows", "rows run before timing starts, in every process"),
    ):
        work.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            metavar="N",
            default=options.default(CompareConfig, name),
            help=f"{help_text} (default: %(default)s)",
        )
    accuracy = parser.add_argument_group("accuracy")
    accuracy.add_argument(
        "--reference",
        metavar="ENGINE:FORMAT",
        default=options.default(CompareConfig, "reference"),
        help="what answers are compared with, run one row at a time (default: %(default)s)",
    )
    accuracy.add_argument(
        "--embeddings",
        metavar="MODEL",
        default=options.default(CompareConfig, "embeddings"),
        help="catalog name or sentence-transformers folder, or none (default: %(default)s)",
    )
    accuracy.add_argument(
        "--labels", type=options.text, metavar="COLUMN", help="field with the right answer of a row"
    )
    accuracy.add_argument(
        "--no-teacher-forcing", action="store_true", help="leave KL divergence and top-1 out"
    )
    limits = parser.add_argument_group("limits for the recommendation")
    limits.add_argument("--max-p95", type=float, metavar="S", help="p95 latency of a row, seconds")
    limits.add_argument("--max-ram", type=float, metavar="GB", help="peak memory, 1e9 bytes")
    limits.add_argument(
        "--min-agreement", type=float, metavar="X", help="mean matched prefix, 0 to 1"
    )
    reading = parser.add_argument_group("input")
    reading.add_argument("--prompt-column", type=options.text, metavar="NAME")
    reading.add_argument("--template", type=options.text, metavar="TEXT")
    reading.add_argument("--system", type=options.text, metavar="TEXT")
    options.add_csv_quoting_option(reading)
    options.add_served_model_name_option(reading)
    options.add_row_options(reading)
    options.add_date_option(reading)


def run(arguments: argparse.Namespace) -> int:
    from packhorse.cli.progress import Plain
    from packhorse.compare.runner import compare
    from packhorse.compare.terminal import table

    config = CompareConfig(
        model=arguments.model,
        input=arguments.input,
        output=arguments.output,
        engines=arguments.engines,
        quantizations=arguments.quantizations,
        batchings=arguments.batchings,
        sample=arguments.sample,
        repeats=arguments.repeats,
        warmup_rows=arguments.warmup_rows,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        max_batch_tokens=arguments.max_batch_tokens,
        reference=arguments.reference,
        embeddings=None if arguments.embeddings == "none" else arguments.embeddings,
        labels=arguments.labels,
        teacher_forcing=not arguments.no_teacher_forcing,
        limits=UserLimits(arguments.max_p95, arguments.max_ram, arguments.min_agreement),
        reading=InputConfig(
            prompt_column=arguments.prompt_column,
            template=arguments.template,
            system=arguments.system,
            csv_quoting=arguments.csv_quoting,
            served_model_name=tuple(arguments.served_model_name),
            date=arguments.date,
            row_options=arguments.row_options,
        ),
        resume=arguments.resume,
        allow_pickle=arguments.allow_pickle,
        command=shlex.join(["packhorse", *sys.argv[1:]]),
    )
    try:
        comparison = compare(config, Plain(sys.stderr))
    except KeyboardInterrupt:
        folder = shlex.quote(str(config.output))
        print(
            f"packhorse: what was measured is kept in {folder}; go on with --resume",
            file=sys.stderr,
        )
        raise
    width = shutil.get_terminal_size((100, 24)).columns
    print(table(comparison, width, colour=sys.stdout.isatty()))
    print(f"\nreports     {config.output}/report.html, .md, .csv, .json")
    if arguments.json:
        print(json.dumps(comparison.to_json()["recommendation"]))
    return EXIT_DONE
