"""`packhorse serve MODEL`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from packhorse.batching import AUTO, POLICIES
from packhorse.cli import EXIT_DONE, EXIT_FAILED_ROWS, options
from packhorse.config import BatchingConfig
from packhorse.errors import ConfigError

if TYPE_CHECKING:
    from packhorse.serve.config import ServeConfig

KEY_VARIABLE = "PACKHORSE_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from packhorse.serve.config import ServeConfig

    parser.add_argument("model", metavar="MODEL", help="catalog name, hub id, folder or GGUF file")
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host",
        default=options.default(ServeConfig, "host"),
        help="address to listen on (default: %(default)s, this machine only)",
    )
    group.add_argument(
        "--port",
        type=int,
        default=options.default(ServeConfig, "port"),
        help="0 is any free one (default: %(default)s)",
    )
    group.add_argument(
        "--name",
        "--served-model-name",
        metavar="NAME",
        help="what clients call the model (default: MODEL)",
    )
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"a key a line; clients need one of them (or one key in {KEY_VARIABLE})",
    )
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name clients call the server by, beside localhost and addresses; repeatable",
    )
    group.add_argument(
        "--embeddings",
        metavar="EMBEDDING_MODEL",
        help="catalog name or folder of a sentence-embedding model; serves /v1/embeddings with it",
    )
    group.add_argument(
        "--state",
        type=Path,
        metavar="FOLDER",
        help="for files and batches, which are not served without it",
    )
    group.add_argument(
        "--drain-seconds",
        type=float,
        metavar="S",
        default=options.default(ServeConfig, "drain_seconds"),
        help="for requests under way at SIGTERM (default: %(default)g)",
    )
    group.add_argument(
        "--stall-seconds",
        type=float,
        metavar="S",
        default=options.default(ServeConfig, "stall_seconds"),
        help="an engine that has work and computes no token for so long is restarted; give more "
        "than its longest prompts take; 0 never (default: %(default)g)",
    )
    _add_batching_options(parser)
    options.add_engine_options(parser)
    options.add_decoding_options(parser)


def _add_batching_options(parser: argparse.ArgumentParser) -> None:
    from packhorse.serve.config import QueueConfig

    group = parser.add_argument_group("batching")
    group.add_argument(
        "--max-delay-ms",
        type=float,
        metavar="MS",
        default=1000 * options.default(QueueConfig, "max_delay_seconds"),
        help="a request waits this long for others to share a batch with (default: %(default)g)",
    )
    group.add_argument(
        "--max-batch-tokens",
        type=int,
        metavar="N",
        help="tokens a batch, new tokens included (default: from free memory and the engine)",
    )
    group.add_argument(
        "--max-queue",
        type=int,
        metavar="N",
        default=options.default(QueueConfig, "max_rows"),
        help="rows that wait at most; more are refused with 429 (default: %(default)s)",
    )
    group.add_argument(
        "--max-queue-tokens",
        type=int,
        metavar="N",
        default=options.default(QueueConfig, "max_tokens"),
        help="their prompt and new tokens at most (default: %(default)s)",
    )
    group.add_argument(
        "--batching",
        choices=(AUTO, *POLICIES),
        default=options.default(BatchingConfig, "policy"),
        help="how rows that wait are put into batches (default: what suits the engine)",
    )
    group.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        default=options.default(BatchingConfig, "batch_size"),
        help="rows a batch, for fixed and sorted (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    try:
        from packhorse.serve.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("fastapi", "uvicorn", "prometheus_client"):
            raise
        raise ConfigError(
            f"packhorse serve needs {error.name}", "pip install 'packhorse[serve]'"
        ) from error

    is_clean = serve(
        _config(arguments), lambda text: print(f"packhorse: {text}", file=sys.stderr, flush=True)
    )
    return EXIT_DONE if is_clean else EXIT_FAILED_ROWS


def _config(arguments: argparse.Namespace) -> ServeConfig:
    from packhorse.serve.config import QueueConfig, ServeConfig

    return ServeConfig(
        model=arguments.model,
        host=arguments.host,
        port=arguments.port,
        name=arguments.name,
        engine=options.engine_config(arguments),
        batching=BatchingConfig(
            arguments.batching, arguments.batch_size, arguments.max_batch_tokens
        ),
        decoding=options.decoding_config(arguments),
        queue=QueueConfig(
            max_delay_seconds=arguments.max_delay_ms / 1000,
            max_rows=arguments.max_queue,
            max_tokens=arguments.max_queue_tokens,
        ),
        api_keys=_api_keys(arguments.api_key_file),
        allowed_hosts=tuple(arguments.allow_host),
        state=arguments.state,
        embeddings=arguments.embeddings,
        stall_seconds=arguments.stall_seconds,
        drain_seconds=arguments.drain_seconds,
        allow_pickle=arguments.allow_pickle,
    )


def _api_keys(file: Path | None) -> tuple[str, ...]:
    """Keys from the file, else from the environment; never from the command line, which others on
    the machine can read."""
    if file is None:
        key = os.environ.get(KEY_VARIABLE, "")
        return (key,) if key else ()
    try:
        keys = tuple(filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}", "name a text file") from error
    if not keys:
        raise ConfigError(f"{file} holds no key", "write one key a line into it")
    return keys
