"""`packhorse calibrate MODEL`."""

from __future__ import annotations

import argparse
import json
import sys

from packhorse.cli import EXIT_DONE, options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="catalog name, hub id, folder or GGUF file")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options.add_engine_options(parser)


def run(arguments: argparse.Namespace) -> int:
    from packhorse.calibration import calibrate
    from packhorse.inference.model import prepare_for

    def report(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    config = options.engine_config(arguments)
    prepared = prepare_for(
        arguments.model, config, allow_pickle=arguments.allow_pickle, report=report
    )
    found = calibrate(prepared, config, report)
    if arguments.json:
        print(json.dumps(found.to_json()))
        return EXIT_DONE
    capabilities = found.capabilities
    print(
        f"{found.model} on {capabilities.name} {capabilities.compute_type}, {capabilities.device}"
    )
    for trial in found.thread_trials:
        chosen = (trial.workers, trial.threads) == (capabilities.workers, capabilities.threads)
        print(
            f"  {trial.workers} worker(s) x {trial.threads} thread(s)"
            f"{trial.tokens_per_second:12,.0f} tokens/s{'  <- chosen' if chosen else ''}"
        )
    print("costs on a worker while all are busy, microseconds")
    for name, seconds in found.coefficients._asdict().items():
        print(f"  {name.replace('_', ' '):18}{seconds * 1e6:14,.4f}")
    print(
        f"measured in {found.seconds:.1f} s from {found.observations} observations, "
        f"median error {found.error:.1%}"
    )
    if found.is_disturbed:
        print(
            f"other work took {found.other_work_share:.0%} of the usable cores meanwhile: "
            "measure again when it is quiet"
        )
    return EXIT_DONE
