"""`packhorse prepare MODEL`."""

from __future__ import annotations

import argparse
import json
import sys

from packhorse.cli import EXIT_DONE, options
from packhorse.config import DEVICES, QUANTIZATIONS, EngineConfig
from packhorse.engine_protocol.registry import model_engines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="catalog name (see packhorse models), hub id, folder or GGUF file",
    )
    parser.add_argument(
        "--engine",
        type=options.engine_with_model,
        metavar=options.engine_list(model_engines()),
        default=options.default(EngineConfig, "engine"),
        help="the engine it is prepared for (default: what runs it as it is)",
    )
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default=options.default(EngineConfig, "quantization"),
        help="number format of the weights stored for ctranslate2",
    )
    options.add_method_option(parser)
    parser.add_argument(
        "--device", choices=DEVICES, default=options.default(EngineConfig, "device")
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="accept PyTorch .bin weights where there is no safetensors file",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    from packhorse.models import prepare

    prepared = prepare(
        arguments.model,
        engine=arguments.engine,
        quantization=arguments.quantization,
        device=arguments.device,
        quantization_method=arguments.quantization_method,
        allow_pickle=arguments.allow_pickle,
        report=lambda message: print(message, file=sys.stderr, flush=True),
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
        print(json.dumps(facts))
        return EXIT_DONE
    print(f"{prepared.name} is ready for {prepared.engine}")
    print(f"  folder       {prepared.folder}")
    method = f" ({prepared.quantization_method})" if prepared.quantization_method else ""
    print(f"  weights      {prepared.quantization}{method}, {prepared.bytes_on_disk / 1e6:,.0f} MB")
    print(f"  fingerprint  {prepared.fingerprint[:12]}")
    return EXIT_DONE
