"""`packhorse quantize MODEL`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from packhorse.cli import EXIT_DONE, options
from packhorse.config import QUANTIZATION_METHODS, QUANTIZATIONS, InputConfig

if TYPE_CHECKING:
    from packhorse.evaluation.statistics import Estimate
    from packhorse.quantize import Accuracy, QuantizeReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="catalog name, hub id, folder or GGUF file")
    parser.add_argument(
        "--quantization",
        choices=[name for name in QUANTIZATIONS if name.startswith("int8")],
        default="int8",
        help="number format of weights and products (default: %(default)s)",
    )
    parser.add_argument(
        "--method",
        choices=QUANTIZATION_METHODS,
        default="auto",
        help="search this method only (default: all that the model's family can have)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        type=Path,
        help="prompts like those the model will be used for, any file that run reads (default: "
        "96 prompts of many kinds, shipped)",
    )
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        default=96,
        help="calibration prompts at most, a third of them to judge by (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=Path,
        help="folder for a copy of the model",
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="accept PyTorch .bin weights where there is no safetensors file",
    )
    parser.add_argument(
        "--prompt-column", type=options.text, metavar="NAME", help="of FILE, as for run"
    )
    parser.add_argument("--template", type=options.text, metavar="TEXT", help="of FILE, as for run")
    options.add_csv_quoting_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    from packhorse.quantize import QuantizeConfig, quantize

    report = quantize(
        QuantizeConfig(
            model=arguments.model,
            quantization=arguments.quantization,
            method=arguments.method,
            calibration=arguments.calibration,
            rows=arguments.rows,
            output=arguments.output,
            allow_pickle=arguments.allow_pickle,
            reading=InputConfig(
                arguments.prompt_column,
                arguments.template,
                csv_quoting=arguments.csv_quoting,
                row_options="no",
            ),
        ),
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(report.to_json()) if arguments.json else _summary(report))
    return EXIT_DONE


def _summary(report: QuantizeReport) -> str:
    """What was found, and both models beside each other."""
    tried = sorted(report.simulated.items(), key=lambda item: item[1])
    listed = ", ".join(f"{method} {kl:.4f}" for method, kl in tried)
    before, after = _figures(report.plain), _figures(report.chosen)
    lines = [
        f"{report.model} in {report.quantization}: {report.method}",
        *([f"  searched     {listed} (simulated KL, nats a token)"] if tried else []),
        f"  measured on {report.held_out} rows that only judged, against float32",
        f"  {'':18}{'plain int8':>25}{report.method:>25}",
        *(f"  {name:18}{old:>25}{after[name]:>25}" for name, old in before.items()),
        f"  folder       {report.folder}",
        f"  recipe       {report.recipe}",
        f"  {report.seconds:.0f} s; packhorse run and prepare use it for this model in int8 from "
        "now on",
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
