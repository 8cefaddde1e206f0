"""`packhorse plan MODEL INPUT`."""

from __future__ import annotations

import argparse
import sys

from packhorse.cli import EXIT_DONE, EXIT_REFUSED, options, print_json, print_progress
from packhorse.estimate import EstimateConfig, JobEstimate, estimate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add(parser, EstimateConfig, "model", "input", "max_hours", "allow_pickle")
    options.add_json(parser)
    group = parser.add_argument_group("techniques to consider (every combination is tried)")
    options.add(group, EstimateConfig, "engines", "quantizations", "batchings")
    options.add_sampling(parser)
    options.add_input(parser)
    options.add_prompts(parser)


def run(arguments: argparse.Namespace) -> int:
    config = options.read(arguments, EstimateConfig)
    found = estimate(config, print_progress)
    if arguments.json:
        print_json(found.to_json())
    else:
        print("\n".join(lines(found)))
    if found.recommended is None:
        shortest = found.predictions[0]
        print(
            f"packhorse: no technique finishes within {config.max_hours:g} hours\n"
            f"  hint: the fastest takes at most {duration(shortest.highest_seconds)}: "
            f"{shortest.command}",
            file=sys.stderr,
        )
        return EXIT_REFUSED
    return EXIT_DONE


def lines(found: JobEstimate) -> list[str]:
    """Return an estimate as lines of a terminal."""
    shown = [
        f"{found.rows:,} rows, {found.prompt_tokens:,} prompt tokens, about {found.new_tokens:,} "
        f"to be generated (measured on {found.pilot_rows} rows)"
    ]
    if found.reasoning_tokens is not None:
        shown.append(f"about {found.reasoning_tokens:,} of these are reasoning")
    if found.unusable_rows:
        shown.append(f"{found.unusable_rows:,} rows cannot be read or do not fit")
    if found.equal_rows:
        shown.append(f"{found.equal_rows:,} rows equal another row and need not run")
    shown.append("")
    shown.append(f"{'technique':42}{'time':>10}   {'90 % interval':23}{'memory':>8}")
    for each in found.predictions:
        name = f"{each.engine} {each.quantization} {each.batching}"
        between = f"{duration(each.lowest_seconds)} to {duration(each.highest_seconds)}"
        mark = " <-" if each == found.recommended else ""
        shown.append(
            f"{name:42}{duration(each.seconds):>10}   {between:23}"
            f"{each.peak_memory_bytes / 1e9:5.1f} GB{mark}"
        )
    shown += [f"{name}: {reason}" for name, reason in found.failed.items()]
    if found.recommended is not None:
        shown += ["", found.recommended.command]
    return shown


def duration(seconds: float) -> str:
    """Return a duration in a suitable unit: 48.2 s, 12.5 min, 3.1 h."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"
