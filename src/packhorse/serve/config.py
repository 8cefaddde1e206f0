"""Options of a server. The command line reads its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from packhorse.config import ALLOW_PICKLE_OPTION, MODEL_OPTION, BatchingConfig, EngineConfig
from packhorse.data import SamplingParams
from packhorse.openai_format.batch_lines import model_names
from packhorse.params.prompt_options import PromptOptions


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """When queued rows go to the engine, and how many may be queued.

    Attributes:
        max_delay_seconds: longest time a row waits for others to share its batch while the engine
            is free. With continuous batching, rows do not wait.
        max_wait_seconds: a row that has waited longer goes before all younger rows.
        max_rows: queued rows; more are refused.
        max_tokens: prompt and new tokens of queued rows; more are refused.
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
class RequestLimits:
    """Limits on clients, checked before a row is queued.

    Attributes:
        body_bytes: size of a request body, except uploads.
        upload_bytes: size of an uploaded file.
        stored_bytes: size of all stored files.
        reserved_disk_bytes: free disk space that uploads must leave.
        uploads: concurrent uploads; others wait.
        upload_bytes_per_second: slowest average rate of an upload after `body_seconds`.
        header_bytes: size of a request line and its headers.
        messages: messages per chat.
        prompts: prompts per completion request.
        log_probs: log-probabilities that a request may return, chosen and top tokens together.
        embedding_texts: texts per embedding request.
        embedding_tokens: tokens per embedding request.
        embedding_waiting: texts of all running embedding requests; more are refused, unless
            nothing else is running.
        connections: open connections.
        header_seconds: time to send the headers.
        body_seconds: time to send the body; for uploads, longest pause.
        write_seconds: longest time in which a client reads nothing of its response.
    """

    body_bytes: int = 4 << 20
    upload_bytes: int = 256 << 20
    stored_bytes: int = 16 << 30
    reserved_disk_bytes: int = 1 << 30
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
    """One server.

    Attributes:
        port: 0 is any free port.
        name: model name for clients; None is `model`, or the last part of a path.
        aliases: further model names for clients.
        decoding: defaults for requests.
        prompts: how requests become prompts, unless they say otherwise.
        api_keys: accepted keys; if empty, no key is required.
        allowed_hosts: accepted Host names besides localhost and IP addresses.
        allowed_origins: origins of pages that may use the server beside its own, or "*".
        stall_seconds: restart an engine that has work and sends no message for this long; 0 never.
            It sends none during the prefill of a batch.
        drain_seconds: time for running requests to finish at shutdown.
        state: directory for uploaded files and batches, used by one server at a time; None
            disables them.
        embeddings: catalog name or folder of a sentence-embedding model; None disables embeddings.
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
    aliases: tuple[str, ...] = field(
        default=(),
        metadata={
            "flags": ("--alias",),
            "metavar": "NAME",
            "repeatable": True,
            "help": "also answer to this model name, e.g. gpt-4o-mini; repeatable",
        },
    )
    engine: EngineConfig = field(default_factory=EngineConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    decoding: SamplingParams = field(default_factory=SamplingParams)
    queue: QueueConfig = field(default_factory=QueueConfig)
    limits: RequestLimits = field(default_factory=RequestLimits)
    prompts: PromptOptions = field(default_factory=PromptOptions)
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
    allowed_origins: tuple[str, ...] = field(
        default=(),
        metadata={
            "flags": ("--allow-origin",),
            "metavar": "ORIGIN",
            "repeatable": True,
            "help": "let pages of this origin, such as https://app.example, use the server (CORS), "
            "or of every origin with *; repeatable",
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
        chosen, else also those that `packhorse run` takes; and the aliases."""
        own = () if self.name else model_names(self.model)
        return tuple(dict.fromkeys((self.served_name, *own, *self.aliases)))

    @property
    def embeddings_name(self) -> str:
        """What clients call the embedding model."""
        return Path(self.embeddings or "").name
