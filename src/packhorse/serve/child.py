"""The engine process: load the model, pull batches from the server, send every token."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue

from packhorse.config import BatchingConfig, EngineConfig
from packhorse.data import Batch, EngineOutput, Failure, Prompt, SamplingParams, TokenLogProbs
from packhorse.engine_protocol import EngineCapabilities
from packhorse.errors import PackhorseError
from packhorse.inference.generation import StopStrings
from packhorse.inference.model import Model, load_prepared
from packhorse.jobs.streams import guarded_streams
from packhorse.models import PreparedModel
from packhorse.serve.channel import Channel, Message
from packhorse.serve.wire import (
    log_probs_values,
    prompt_values,
    read_batch,
    ready_message,
    timing_values,
)

WAIT_SECONDS = 0.004
"""How long an engine with running rows waits for another batch."""
EMPTY_BATCH = Batch(())


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What to load: `packhorse.inference.model.load_prepared`'s arguments, and what requests
    get."""

    prepared: PreparedModel
    engine: EngineConfig
    batching: BatchingConfig
    decoding: SamplingParams


def main(connection: Connection, loading: EngineSpec) -> None:
    """Run the engine process.

    The server decides when it ends: SIGINT and SIGTERM, which a terminal sends to both, are
    ignored. If the server dies, the process exits at once.
    """
    with guarded_streams():
        _run(connection, loading)


def _run(connection: Connection, loading: EngineSpec) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    inbox = _Inbox()
    channel = Channel(connection, inbox.receive, lambda: os._exit(1))
    try:
        model = load_prepared(
            loading.prepared,
            loading.engine,
            loading.batching,
            lambda text: channel.send({"kind": "report", "text": text}),
        )
    except PackhorseError as error:
        refusal = {"kind": "refused", "message": str(error), "hint": error.hint}
        channel.send({**refusal, "error": type(error).__name__})
    else:
        with model:
            budget = model.budget(loading.decoding)
            channel.send(ready_message(model, budget, _description(model, budget.tokens)))
            _EngineLoop(model, channel, inbox).run()
    channel.finish()
    sys.stdout.flush()
    os._exit(0)  # threads of libraries that will not end must not keep it


class _Inbox:
    """Messages from the server. cancelled: rows to end at their next token."""

    def __init__(self) -> None:
        self.messages: SimpleQueue[Message] = SimpleQueue()
        self.cancelled: set[int] = set()
        self._open: set[int] = set()

    def receive(self, messages: list[Message]) -> None:
        for message in messages:
            if message["kind"] == "cancel":
                self.cancelled |= self._open.intersection(message["rows"])
                continue
            if message["kind"] == "batch":
                self._open.update(row for row, *_ in message["rows"])
            self.messages.put(message)

    def finish(self, row: int) -> None:
        """The row has its result."""
        self._open.discard(row)
        self.cancelled.discard(row)


class _EngineLoop:
    """Runs batches from the server until it sends `stop`."""

    def __init__(self, model: Model, channel: Channel, inbox: _Inbox) -> None:
        self._model, self._channel, self._inbox = model, channel, inbox
        self._source = _Source(model.capabilities, channel, inbox.messages)
        self._stops = StopStrings(model.codec, self._decoding_of)
        self._on_token = _TokenSender(channel, self._stops, inbox)

    def run(self) -> None:
        for result in self._model.engine.run(self._source, self._on_token):
            self._source.finish(result.index)
            self._stops.forget(result.index)
            self._inbox.finish(result.index)
            self._channel.send(_result_message(result))

    def _decoding_of(self, row: int) -> SamplingParams:
        return self._source.running[row].decoding


@dataclass(frozen=True, slots=True)
class _TokenSender:
    """Sends every token to the server, with log-probabilities if requested; ends rows at stop
    strings and when they are cancelled."""

    channel: Channel
    stops: StopStrings
    inbox: _Inbox
    _log_probs: dict[int, TokenLogProbs] = field(default_factory=dict)

    def take_log_probs(self, row: int, token: TokenLogProbs) -> None:
        self._log_probs[row] = token

    def __call__(self, row: int, token_id: int) -> bool:
        message: Message = {"kind": "token", "row": row, "id": token_id}
        if (found := self._log_probs.pop(row, None)) is not None:
            message["log_probs"] = log_probs_values(found)
        self.channel.send(message)
        return self.stops(row, token_id) or row in self.inbox.cancelled


class _Source(Iterator[Batch]):
    """Iterator of batches from the server; yields empty batches while it sends none.

    A batch is requested only when the engine can start it, so that rows wait in the server's queue,
    where they can still be batched with others. Without continuous batching, that is one batch per
    worker.
    """

    def __init__(
        self, capabilities: EngineCapabilities, channel: Channel, inbox: SimpleQueue[Message]
    ) -> None:
        self._capabilities, self._channel, self._inbox = capabilities, channel, inbox
        self._has_asked = False
        self._batch_of: dict[int, set[int]] = {}
        self.running: dict[int, Prompt] = {}

    def __next__(self) -> Batch:
        if not self._has_asked and self._can_take_batch():
            self._channel.send({"kind": "wants_batch"})
            self._has_asked = True
        try:
            message = self._inbox.get(timeout=WAIT_SECONDS if self.running else None)
        except Empty:
            return EMPTY_BATCH
        if message["kind"] == "stop":
            raise StopIteration
        self._has_asked = False
        batch = read_batch(message)
        rows = {prompt.index for prompt in batch.prompts}
        for prompt in batch.prompts:
            self.running[prompt.index] = prompt
            self._batch_of[prompt.index] = rows
        return batch

    def finish(self, row: int) -> None:
        """The row has its result."""
        del self.running[row]
        self._batch_of.pop(row).discard(row)

    def _can_take_batch(self) -> bool:
        if self._capabilities.max_num_seqs:
            return True
        batches = {id(rows) for rows in self._batch_of.values()}
        return len(batches) < self._capabilities.workers


def _result_message(result: EngineOutput | Failure) -> Message:
    if isinstance(result, Failure):
        failure = {"row": result.index, "code": result.code, "message": result.message}
        return {"kind": "failed", **failure}
    message: Message = {
        "kind": "done",
        "row": result.index,
        "reason": result.finish_reason,
        "tokens": len(result.token_ids),
        "timing": timing_values(result.timing),
    }
    if result.prompt_log_probs is not None:
        message["prompt"] = prompt_values(result.prompt_log_probs)
    return message


def _description(model: Model, max_batch_tokens: int) -> str:
    capabilities = model.capabilities
    return (
        f"{capabilities.name} {capabilities.compute_type} on {capabilities.device}, "
        f"{capabilities.workers} x {capabilities.threads} threads, {model.batching.policy}, "
        f"at most {max_batch_tokens:,} tokens per batch"
    )
