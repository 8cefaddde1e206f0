"""What a server is: frozen, composed, inert. The command line reads its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from packhorse.config import BatchingConfig, EngineConfig
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

    max_delay_seconds: float = 0.01
    max_wait_seconds: float = 10.0
    max_rows: int = 1024
    max_tokens: int = 1 << 20


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a client may take before it has a row of its own.

    body_bytes: of a request, but for uploaded files, which may have upload_bytes. stored_bytes: of
        all files that are kept. reserved_disk_bytes: that uploads leave free on the disk. uploads: taken at
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

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    decoding: SamplingParams = field(default_factory=SamplingParams)
    queue: QueueConfig = field(default_factory=QueueConfig)
    limits: RequestLimits = field(default_factory=RequestLimits)
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    stall_seconds: float = 120.0
    drain_seconds: float = 30.0
    state: Path | None = None
    embeddings: str | None = None
    allow_pickle: bool = False

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
