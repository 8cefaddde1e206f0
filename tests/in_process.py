"""A server's batches in the test's own process, so that its parts can go wrong; the engine is a
process of its own as ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from packhorse.config import BatchingConfig, EngineConfig
from packhorse.data import SamplingParams
from packhorse.inference.model import prepare_for
from packhorse.serve.app import application
from packhorse.serve.batch_documents import BatchDocuments
from packhorse.serve.batches import Batches
from packhorse.serve.child import EngineSpec
from packhorse.serve.config import QueueConfig, RequestLimits, ServeConfig
from packhorse.serve.files import FileStore
from packhorse.serve.prometheus import ServerMetrics
from packhorse.serve.request_queue import RequestQueue
from packhorse.serve.service import Service
from packhorse.serve.supervisor import Supervisor

ENDED = ("completed", "failed", "cancelled")


@dataclass
class Local:
    """lines: what was reported to people."""

    batches: Batches
    limits: RequestLimits
    lines: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> ServerMetrics:
        return self.batches.service.supervisor.metrics

    def client(self) -> httpx.AsyncClient:
        """Sends to the application itself, as clients do over HTTP."""
        config = ServeConfig("fake", limits=self.limits)
        app = application(config, self.batches.service, self.metrics, self.batches, None)
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        return httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def begun(self, rows: list[dict[str, Any]], folder: Path) -> str:
        """A batch of rows with id and prompt, and whatever their bodies hold besides."""
        path = folder / "rows.jsonl"
        path.write_text("\n".join(json.dumps(batch_line(**row)) for row in rows))
        with path.open("rb") as content:
            file = self.batches.files.add(content, "rows.jsonl", "batch")
        return str((await self.batches.create(file["id"], "/v1/completions", {}))["id"])

    def document(self, identifier: str) -> dict[str, Any]:
        return self.batches.documents.find(identifier)

    async def ended(self, identifier: str) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while self.document(identifier)["status"] not in ENDED:
                await asyncio.sleep(0.02)
        return self.document(identifier)

    def rows_of(self, file_id: str | None) -> list[dict[str, Any]]:
        assert file_id is not None
        text = self.batches.files.content(file_id).read_text()
        return [json.loads(line) for line in text.splitlines()]


def batch_line(id: Any, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:  # noqa: A002
    """A line of a batch file."""
    return {"custom_id": str(id), "method": "POST", "url": url, "body": {"model": "fake", **body}}


def local(
    folder: Path,
    files: FileStore | None = None,
    limits: RequestLimits | None = None,
    engine: str = "auto",
) -> Local:
    """Not started. engine: its quantization."""
    lines: list[str] = []
    config = EngineConfig(engine="fake", quantization=engine)
    prepared = prepare_for("fake", config)
    decoding, metrics = SamplingParams(max_new_tokens=24), ServerMetrics()
    loading = EngineSpec(prepared, config, BatchingConfig(), decoding)
    supervisor = Supervisor(loading, RequestQueue(QueueConfig()), metrics, lines.append)
    limits = limits or RequestLimits()
    codec, most = prepared.codec(), limits.log_probs
    service = Service("fake", prepared, decoding, supervisor, codec, most)
    documents = BatchDocuments(folder / "batches", lines.append)
    files = files or FileStore(folder / "files", report=lines.append)
    batches = Batches(documents, files, service, lines.append)
    batches.recover()
    return Local(batches, limits, lines)


@asynccontextmanager
async def running(
    folder: Path, files: FileStore | None = None, engine: str = "auto"
) -> AsyncIterator[Local]:
    """A `Local` that runs batches; left, it ends as if it had been killed."""
    server = local(folder, files, engine=engine)
    service = server.batches.service
    await service.supervisor.start()
    task = asyncio.create_task(server.batches.run())
    try:
        yield server
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await service.supervisor.stop()
        service.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)
