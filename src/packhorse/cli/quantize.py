"""`packhorse quantize MODEL`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from packhorse.cli import EXIT_DONE, options, print_json, print_progress
from packhorse.config import InputConfig
from packhorse.quantize import Accuracy, QuantizeConfig, QuantizeReport, quantize

if TYPE_CHECKING:
    from packhorse.evaluation.statistics import Estimate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add(parser, QuantizeConfig)
    group = parser.add_argument_group("calibration prompts")
    options.add(group, InputConfig, "prompt_column", "template", "csv_quoting")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    reading = options.read(arguments, InputConfig, row_options="no")
    report = quantize(options.read(arguments, QuantizeConfig, reading=reading), print_progress)
    if arguments.json:
        print_json(report.to_json())
    else:
        print(_summary(report))
    return EXIT_DONE


def _summary(report: QuantizeReport) -> str:
    """Return the search result, and plain int8 and the chosen method side by side."""
    tried = sorted(report.simulated.items(), key=lambda item: item[1])
    listed = ", ".join(f"{method} {kl:.4f}" for method, kl in tried)
    before, after = _figures(report.plain), _figures(report.chosen)
    lines = [
        f"{report.model} in {report.quantization}: {report.method}",
        *([f"  searched     {listed} (simulated KL, nats per token)"] if tried else []),
        f"  measured on {report.held_out} held-out rows, against float32",
        f"  {'':18}{'plain int8':>25}{report.method:>25}",
        *(f"  {name:18}{old:>25}{after[name]:>25}" for name, old in before.items()),
        f"  folder       {report.folder}",
        f"  recipe       {report.recipe}",
        f"  {report.seconds:.0f} s; packhorse run and prepare now use it for this model in int8",
    ]
    return "\n".join(lines)


def _figures(accuracy: Accuracy) -> dict[str, str]:
    forced, quality = accuracy.forced, accuracy.quality
    return {
        "KL divergence": _interval(forced.kl_divergence, 4),
        "top-1 agreement": _interval(forced.top1_agreement, 3),
        "matched prefix": _interval(quality.matched_prefix, 3),
        "first token equal": _interval(quality.first_token_equal, 3),
        "rows identical": f"{quality.identical_count} of {quality.judged}",
    }


def _interval(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f}-{estimate.high:.{digits}f})"
