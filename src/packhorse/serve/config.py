"""What a server is: frozen, composed, inert. The command line reads its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from packhorse.config import ALLOW_PICKLE_OPTION, MODEL_OPTION, BatchingConfig, EngineConfig
from packhorse.data import SamplingParams
from packhorse.openai_format.batch_lines import model_names


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """When rows that wait go to the engine.

    max_delay_seconds: a row waits this long at most for others to share a batch with, while the
        engine has room. An engine that rows join at every step makes nobody wait.
    max_wait_seconds: a row that has waited longer goes before all that came after it, whatever it
        costs.
    max_rows, max_tokens: rows and tokens (prompt and new) that wait at most; more are refused.
    """

    max_delay_seconds: float = field(
        default=0.01,
        metadata={
            "flags": ("--max-delay-ms",),
            "metavar": "MS",
            "scale": 1e-3,
            "help": "let a request wait this long for others to share a batch with",
        },
    )
    max_wait_seconds: float = 10.0
    max_rows: int = field(
        default=1024,
        metadata={
            "flags": ("--max-queue",),
            "help": "maximum number of waiting rows; further requests get status 429",
        },
    )
    max_tokens: int = field(
        default=1 << 20,
        metadata={
            "flags": ("--max-queue-tokens",),
            "help": "maximum number of prompt and new tokens of the waiting rows",
        },
    )


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a client may take before it has a row of its own.

    body_bytes: of a request, but for uploaded files, which may have upload_bytes. stored_bytes: of
        all files that are kept. spare_bytes: that uploads leave free on the disk. uploads: taken at
        the same time; others wait. header_bytes: of a request line and its headers. messages: of
        one chat. prompts: of one completion request.
    log_probs: of the tokens that a request may generate and of the most probable in their places.
    embedding_texts, embedding_tokens: of one request for embeddings. embedding_waiting: texts of
        all such requests under way; more are refused, unless nothing else is under way.
    connections: open at the same time. header_seconds, body_seconds: to send them in. An upload may
        pause that long, and take as much longer as it has bytes at upload_bytes_per_second.
    write_seconds: without taking anything of what is left for it to take.
    """

    body_bytes: int = 4 << 20
    upload_bytes: int = 256 << 20
    stored_bytes: int = 16 << 30
    spare_bytes: int = 1 << 30
    uploads: int = 4
    upload_bytes_per_second: int = 64 << 10
    header_bytes: int = 16 << 10
    messages: int = 1024
    prompts: int = 64
    log_probs: int = 1 << 18
    embedding_texts: int = 2048
    embedding_tokens: int = 300_000
    embedding_waiting: int = 8192
    connections: int = 2048
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """One server: a model behind a port.

    name: what clients call the model; None is `model` itself, a path's last part.
    decoding: what a request that says nothing gets. port 0 is any free one.
    api_keys: any of them lets a client in; none is needed where there are none.
    allowed_hosts: names by which clients may call the server, beside localhost and IP addresses.
    stall_seconds: an engine that has work and gives no sign for so long is lost and restarted; 0
        waits for ever. Nothing is heard of it while it computes a batch's prompts.
    drain_seconds: time for requests under way once the server is told to end.
    embeddings: a catalog name or folder of a sentence-embedding model; None serves none.
    state: folder for files and batches, of this server alone; without one there are none.
    """

    model: str = field(metadata=MODEL_OPTION)
    host: str = field(
        default="127.0.0.1",
        metadata={
            "metavar": "HOST",
            "help": "listen on this address",
            "default": "127.0.0.1: only this machine can connect",
        },
    )
    port: int = field(
        default=8000,
        metadata={"metavar": "PORT", "help": "listen on this port; 0 takes any free one"},
    )
    name: str | None = field(
        default=None,
        metadata={
            "flags": ("--served-model-name",),
            "aliases": ("--name",),
            "metavar": "NAME",
            "help": "name by which clients call the model",
            "default": "MODEL",
        },
    )
    engine: EngineConfig = field(default_factory=EngineConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    decoding: SamplingParams = field(default_factory=SamplingParams)
    waits: QueueConfig = field(default_factory=QueueConfig)
    bounds: Bounds = field(default_factory=Bounds)
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = field(
        default=(),
        metadata={
            "flags": ("--allow-host",),
            "metavar": "NAME",
            "repeatable": True,
            "help": "accept requests to this host name, beside localhost and IP addresses; "
            "repeatable",
        },
    )
    stall_seconds: float = field(
        default=120.0,
        metadata={
            "metavar": "S",
            "help": "restart an engine that has work and computes no token for S seconds; must "
            "exceed the time for its longest prompts; 0 disables this",
        },
    )
    drain_seconds: float = field(
        default=30.0,
        metadata={
            "metavar": "S",
            "help": "let requests in flight finish for S seconds after SIGTERM",
        },
    )
    state: Path | None = field(
        default=None,
        metadata={
            "metavar": "FOLDER",
            "help": "directory for uploaded files and batches; enables /v1/files and /v1/batches",
        },
    )
    embeddings: str | None = field(
        default=None,
        metadata={
            "metavar": "MODEL",
            "help": "serve /v1/embeddings with this embedding model: catalog name or "
            "sentence-transformers folder",
            "type": str,
        },
    )
    allow_pickle: bool = field(default=False, metadata=ALLOW_PICKLE_OPTION)

    @property
    def served_name(self) -> str:
        return self.name or Path(self.model).name

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names by which clients may call the model, `served_name` first: that alone if it was
        chosen, else also those that `packhorse run` takes."""
        if self.name:
            return (self.name,)
        return tuple(dict.fromkeys((self.served_name, *model_names(self.model))))

    @property
    def embeddings_name(self) -> str:
        """What clients call the embedding model."""
        return Path(self.embeddings or "").name
