"""`packhorse plan MODEL INPUT`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from packhorse.batching import POLICIES
from packhorse.cli import EXIT_DONE, EXIT_REFUSED, options
from packhorse.engine_protocol.registry import model_engines

if TYPE_CHECKING:
    from packhorse.estimate import Forecast


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="catalog name, hub id, folder or GGUF file")
    parser.add_argument("input", metavar="INPUT", help="the file of prompts, as for packhorse run")
    grid = parser.add_argument_group("techniques to consider (comma-separated)")
    for name, default in (
        ("engines", model_engines()),
        ("quantizations", ("float32", "int8")),
        ("batchings", tuple(POLICIES)),
    ):
        grid.add_argument(
            f"--{name}",
            type=options.names,
            metavar="LIST",
            default=",".join(default),
            help="default: %(default)s",
        )
    parser.add_argument(
        "--max-hours",
        type=float,
        metavar="H",
        help="exit with 2 where nothing would end within H hours",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options.add_pickle_option(parser)
    options.add_decoding_options(parser)
    options.add_served_model_name_option(options.add_reading_options(parser))


def run(arguments: argparse.Namespace) -> int:
    from packhorse.estimate import ForecastConfig, forecast

    config = ForecastConfig(
        model=arguments.model,
        input=arguments.input,
        engines=arguments.engines,
        quantizations=arguments.quantizations,
        batchings=arguments.batchings,
        decoding=options.decoding_config(arguments),
        reading=options.reading_config(arguments),
        max_hours=arguments.max_hours,
        allow_pickle=arguments.allow_pickle,
    )
    found = forecast(config, lambda message: print(message, file=sys.stderr, flush=True))
    if arguments.json:
        print(json.dumps(found.to_json()))
    else:
        print("\n".join(lines(found)))
    if found.recommended is None:
        shortest = found.predictions[0]
        print(
            f"packhorse: nothing ends within {arguments.max_hours:g} hours\n"
            f"  hint: the shortest takes {duration(shortest.highest_seconds)} at most: "
            f"{shortest.command}",
            file=sys.stderr,
        )
        return EXIT_REFUSED
    return EXIT_DONE


def lines(found: Forecast) -> list[str]:
    """A forecast for a person."""
    said = [
        f"{found.rows:,} rows, {found.prompt_tokens:,} prompt tokens, about {found.new_tokens:,} "
        f"to be generated (seen in {found.pilot_rows} rows)"
    ]
    if found.unusable_rows:
        said.append(f"{found.unusable_rows:,} rows cannot be read or do not fit")
    if found.equal_rows:
        said.append(f"{found.equal_rows:,} rows equal another one and need not run")
    said.append("")
    said.append(f"{'technique':42}{'time':>10}   {'90 % interval':23}{'memory':>8}")
    for each in found.predictions:
        name = f"{each.engine} {each.quantization} {each.batching}"
        between = f"{duration(each.lowest_seconds)} to {duration(each.highest_seconds)}"
        mark = " <-" if each == found.recommended else ""
        said.append(
            f"{name:42}{duration(each.seconds):>10}   {between:23}"
            f"{each.peak_memory_bytes / 1e9:5.1f} GB{mark}"
        )
    said += [f"{name}: {reason}" for name, reason in found.failed.items()]
    if found.recommended is not None:
        said += ["", found.recommended.command]
    return said


def duration(seconds: float) -> str:
    """Three figures in the unit that suits: 48.2 s, 12.5 min, 3.1 h."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"
