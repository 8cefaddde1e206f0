"""`packhorse serve MODEL`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from packhorse.cli import EXIT_DONE, EXIT_FAILED_ROWS, options, print_message
from packhorse.errors import ConfigError
from packhorse.serve.config import QueueConfig, ServeConfig

KEY_VARIABLE = "PACKHORSE_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add(parser, ServeConfig, "model")
    group = parser.add_argument_group("server")
    options.add(group, ServeConfig, "host", "port", "name", "aliases")
    options.add(group, ServeConfig, "allowed_hosts", "allowed_origins")
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="require one of the API keys in this file, one per line (default: the key in "
        f"{KEY_VARIABLE}, if it is set)",
    )
    options.add(group, ServeConfig, "embeddings", "state", "drain_seconds", "stall_seconds")
    options.add_batching(parser, "policy", "batch_size", "max_batch_tokens")
    options.add(parser.add_argument_group("queue"), QueueConfig)
    options.add_engine(parser, ServeConfig)
    options.add_sampling(parser)
    options.add_prompts(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        from packhorse.serve.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("fastapi", "uvicorn", "prometheus_client"):
            raise
        raise ConfigError(
            f"packhorse serve needs {error.name}", "pip install 'packhorse[serve]'"
        ) from error

    config = options.read(arguments, ServeConfig, api_keys=_api_keys(arguments.api_key_file))
    return EXIT_DONE if serve(config, print_message) else EXIT_FAILED_ROWS


def _api_keys(file: Path | None) -> tuple[str, ...]:
    """Return the keys from the file, else from the environment.

    Never from the command line, which other users of the machine can read.
    """
    if file is None:
        key = os.environ.get(KEY_VARIABLE, "")
        return (key,) if key else ()
    try:
        keys = tuple(filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {error}", "name a text file") from error
    if not keys:
        raise ConfigError(f"{file} contains no key", "write one key per line into it")
    return keys
