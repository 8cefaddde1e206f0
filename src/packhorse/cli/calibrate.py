"""`packhorse calibrate MODEL`."""

from __future__ import annotations

import argparse

from packhorse.cli import EXIT_DONE, options, print_json, print_progress
from packhorse.config import EngineConfig, JobConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add(parser, JobConfig, "model")
    options.add_json(parser)
    options.add_engine(parser, JobConfig)


def run(arguments: argparse.Namespace) -> int:
    from packhorse.calibration import calibrate
    from packhorse.inference.model import prepare_for

    config = options.read(arguments, EngineConfig)
    job = options.given(arguments, JobConfig)
    prepared = prepare_for(
        job["model"], config, allow_pickle="allow_pickle" in job, report=print_progress
    )
    found = calibrate(prepared, config, print_progress)
    if arguments.json:
        print_json(found.to_json())
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
    print("costs per worker while all are busy, in microseconds")
    for name, seconds in found.coefficients._asdict().items():
        print(f"  {name.replace('_', ' '):18}{seconds * 1e6:14,.4f}")
    print(
        f"measured in {found.seconds:.1f} s from {found.observations} observations, "
        f"median error {found.error:.1%}"
    )
    if found.is_disturbed:
        print(
            f"other processes used {found.other_work_share:.0%} of the usable cores: "
            "calibrate again when the machine is idle"
        )
    return EXIT_DONE
