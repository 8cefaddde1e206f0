"""`packhorse prepare MODEL`."""

from __future__ import annotations

import argparse

from packhorse.cli import EXIT_DONE, options, print_json, print_progress
from packhorse.config import EngineConfig, JobConfig
from packhorse.engine_protocol.registry import model_engines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add(parser, JobConfig, "model", "allow_pickle")
    names = ("engine", "quantization", "quantization_method", "device", "verify")
    engine = {
        "help": "prepare the model for this engine",
        "type": options.engine_with_model,
        "metavar": options.engine_list(model_engines()),
    }
    options.add(parser, EngineConfig, *names, engine=engine)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from packhorse.models import prepare

    config = options.read(arguments, EngineConfig)
    job = options.given(arguments, JobConfig)
    prepared = prepare(
        job["model"],
        engine=config.engine,
        quantization=config.quantization,
        device=config.device,
        quantization_method=config.quantization_method,
        allow_pickle="allow_pickle" in job,
        verify=config.verify,
        report=print_progress,
    )
    facts = {
        "name": prepared.name,
        "engine": prepared.engine,
        "kind": prepared.kind,
        "quantization": prepared.quantization,
        "quantization_method": prepared.quantization_method,
        "folder": str(prepared.folder),
        "bytes_on_disk": prepared.bytes_on_disk,
        "fingerprint": prepared.fingerprint,
    }
    if arguments.json:
        print_json(facts)
        return EXIT_DONE
    print(f"{prepared.name} is ready for {prepared.engine}")
    print(f"  folder       {prepared.folder}")
    method = f" ({prepared.quantization_method})" if prepared.quantization_method else ""
    print(f"  weights      {prepared.quantization}{method}, {prepared.bytes_on_disk / 1e6:,.0f} MB")
    print(f"  fingerprint  {prepared.fingerprint[:12]}")
    return EXIT_DONE
