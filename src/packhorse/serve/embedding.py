"""Embeddings of texts, beside the generating engine: one thread of the server's own process.

Texts of a request are cut into batches of near-equal length. Requests take turns at the thread, a
batch each, so that a large one does not hold up the others; a client that leaves, leaves after its
batch.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from packhorse.embeddings import SentenceEncoder, batches_by_length
from packhorse.serve.background import wait_until_idle
from packhorse.serve.config import RequestLimits
from packhorse.serve.errors import APIError
from packhorse.serve.prometheus import ServerMetrics

T = TypeVar("T")
Encoding = Literal["float", "base64"]
Vectors = npt.NDArray[np.float32]
_RETRY_SECONDS = 1


@dataclass(slots=True)
class Embedder:
    """A sentence encoder that is served. All methods belong to the event loop's thread.

    name: what clients call it.
    """

    name: str
    encoder: SentenceEncoder
    limits: RequestLimits
    metrics: ServerMetrics
    waiting_texts: int = 0
    _is_open: bool = True
    _is_closed: bool = False
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="embedding")
    )

    def __post_init__(self) -> None:
        self._idle.set()

    async def embed(
        self, texts: Sequence[str], encoding: Encoding, dimensions: int | None
    ) -> bytes:
        """OpenAI's answer to a request, as JSON. Raises APIError for what cannot be embedded."""
        self._check_request(texts, dimensions)
        self.waiting_texts += len(texts)
        self._idle.clear()
        try:
            rows = await self._in_thread(partial(self.encoder.tokenize, texts))
            self._check_lengths(rows)
            vectors = await self._vectors(rows)
            tokens = sum(map(len, rows))
            answer = await self._in_thread(
                partial(_response_json, self.name, vectors, encoding, tokens)
            )
        finally:
            self.waiting_texts -= len(texts)
            if not self.waiting_texts:
                self._idle.set()
        self.metrics.embedded_texts.inc(len(texts))
        self.metrics.embedded_tokens.inc(tokens)
        return answer

    async def drain(self, seconds: float, force_exit: asyncio.Event) -> bool:
        """Takes no more texts and lets those it has end, for so long and until `force_exit` is set;
        returns whether all of them did."""
        self._is_open = False
        return await wait_until_idle(self._idle, seconds, force_exit)

    def close(self) -> None:
        """What still runs is answered with `shutting_down` after its batch."""
        self._is_open, self._is_closed = False, True
        self._thread.shutdown(wait=False)

    async def _vectors(self, rows: Sequence[list[int]]) -> Vectors:
        vectors = np.empty((len(rows), self.encoder.dimensions), np.float32)
        for places in batches_by_length(list(map(len, rows))):
            batch = [rows[place] for place in places]
            vectors[places] = await self._in_thread(partial(self.encoder.forward, batch))
        return vectors

    def _check_request(self, texts: Sequence[str], dimensions: int | None) -> None:
        """What can be refused before any work."""
        if not self._is_open:
            raise _shutting_down()
        own = self.encoder.dimensions
        if dimensions not in (None, own):
            message = f"{self.name} makes vectors of {own} dimensions, no others; leave it out"
            raise APIError(400, "unsupported_option", message, param="dimensions")
        most = self.limits.embedding_texts
        if len(texts) > most:
            raise APIError(400, "too_many_inputs", f"at most {most:,} texts", param="input")
        if not all(texts):
            raise APIError(400, "empty_input", "a text is empty; give it words", param="input")
        if self.waiting_texts and self.waiting_texts + len(texts) > self.limits.embedding_waiting:
            message = "too many texts wait for their embeddings; try again later"
            raise APIError(429, "queue_full", message, retry_after=_RETRY_SECONDS)

    def _check_lengths(self, rows: Sequence[Sequence[int]]) -> None:
        """A text that is too long is refused, never cut."""
        most, longest = self.encoder.max_tokens, max(map(len, rows))
        if longest > most:
            place = next(place for place, ids in enumerate(rows) if len(ids) == longest)
            message = f"text {place} has {longest:,} tokens; {self.name} takes {most:,}"
            raise APIError(400, "context_length_exceeded", message, param="input")
        total, allowed = sum(map(len, rows)), self.limits.embedding_tokens
        if total > allowed:
            message = f"the texts have {total:,} tokens; at most {allowed:,} a request"
            raise APIError(400, "too_many_tokens", message, param="input")

    async def _in_thread(self, call: Callable[[], T]) -> T:
        if self._is_closed:
            raise _shutting_down()
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _shutting_down() -> APIError:
    return APIError(503, "shutting_down", "the server is shutting down", retry_after=5)


def _response_json(name: str, vectors: Vectors, encoding: Encoding, tokens: int) -> bytes:
    """Written vector by vector: the thread of the event loop gets its turns in between."""
    data = []
    for index, vector in enumerate(vectors):
        written = vector.tolist() if encoding == "float" else _base64(vector)
        data.append(json.dumps({"object": "embedding", "index": index, "embedding": written}))
    usage = json.dumps({"prompt_tokens": tokens, "total_tokens": tokens})
    head = f'{{"object": "list", "model": {json.dumps(name)}, "usage": {usage}, "data": ['
    return f"{head}{', '.join(data)}]}}".encode()


def _base64(vector: Vectors) -> str:
    """float32, little endian, as OpenAI's clients read it."""
    return b64encode(vector.astype("<f4").tobytes()).decode("ascii")
