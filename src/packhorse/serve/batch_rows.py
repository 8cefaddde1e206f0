"""Run rows of batch files on the server's engine, with retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from packhorse.data import Completion, Failure, Request
from packhorse.inference.generation import cut_at_stop
from packhorse.inference.log_probs import log_probs_note
from packhorse.inference.output_reader import MarkedCodec, output_note, read_output
from packhorse.serve.errors import APIError, of_failure
from packhorse.serve.request_state import Finished
from packhorse.serve.requests import ParsedRequest
from packhorse.serve.service import Choice, Service

MAX_ATTEMPTS = 3
"""Attempts per row if the engine dies while it runs: first beside other rows, then alone."""
_RETRY_SECONDS = 1.0


class SharedExclusiveLock:
    """Shared for rows on their first attempt, exclusive for rows that ran when the engine died.

    A retried row runs without other rows of a batch, so that only the row at fault fails. No row
    takes the lock shared while another waits to take it exclusively.
    """

    def __init__(self) -> None:
        self._together = self._suspects = 0
        self._is_one_alone = False
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._suspects == 0)
            self._together += 1
        try:
            yield
        finally:
            self._together -= 1
            await self._tell()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        self._suspects += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._together == 0 and not self._is_one_alone)
                self._is_one_alone = True
            try:
                yield
            finally:
                self._is_one_alone = False
        finally:
            self._suspects -= 1
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class BatchRows:
    """Runs rows of batch files on the engine."""

    service: Service
    _lock: SharedExclusiveLock = field(default_factory=SharedExclusiveLock)

    async def outcome(self, row: Request, date: datetime | None = None) -> Completion | Failure:
        """Return a row's outcome; wait while the queue is full or the engine is being restarted.

        date: the date that chat templates write.
        """
        work = ParsedRequest(
            (row.content,),
            row.options,
            1,
            is_stream=False,
            include_usage=False,
            is_bare=row.bare,
            date=date,
            prompt_options=row.prompt_options,
            key=row.key,
        )
        attempts = 0
        while True:
            async with self._lock.exclusive() if attempts else self._lock.shared():
                try:
                    outcome = await self._attempt(row, work)
                except APIError as refusal:
                    return _failure(row, refusal)
            if isinstance(outcome, Completion):
                return outcome
            attempts += 1
            if outcome.code != "engine_restarted" or attempts == MAX_ATTEMPTS:
                return _failure(row, of_failure(outcome))

    def note(self, row: Request, outcome: Completion | Failure) -> dict[str, Any] | None:
        """Return what to journal beside the text: log-probabilities, reasoning, tool calls."""
        found = output_note(outcome)
        if isinstance(outcome, Completion) and outcome.log_probs is not None:
            found |= log_probs_note(self.service.codec, row, outcome, self.service.decoding)
        return found or None

    async def _attempt(self, row: Request, work: ParsedRequest) -> Completion | Failure:
        """Return the outcome of one attempt. Raises APIError for a row that is refused for good."""
        while True:
            try:
                (choice,) = await self.service.admit(work)
            except APIError as problem:
                if problem.status not in (429, 503):
                    raise
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            try:
                await choice.row.done.wait()
            finally:
                self.service.release([choice])
            outcome = choice.row.outcome
            assert outcome is not None
            if isinstance(outcome, Finished):
                return self._answer(row, choice, outcome)
            if not _never_ran(outcome):
                return outcome
            await asyncio.sleep(_RETRY_SECONDS)

    def _answer(self, row: Request, choice: Choice, ended: Finished) -> Completion:
        ran = choice.row
        ids, prompt = tuple(ran.token_ids), ran.prompt
        codec, form = self.service.codec, choice.form
        decoded = MarkedCodec(codec, form.keep).decode(ids)
        raw, was_cut = cut_at_stop(decoded, prompt.decoding.stop)
        read = read_output(codec, form, ids, raw, row.key)
        reason = read.finish_reason("stop" if was_cut else ended.reason)
        return Completion(
            row.index, row.id, row.key, read.text, ids, reason, len(prompt.token_ids), ended.timing,
            tuple(ran.log_probs) if ran.asks_log_probs else None,
            read.reasoning, read.reasoning_tokens, read.tool_calls, read.content,
        )  # fmt: skip


def _failure(row: Request, problem: APIError) -> Failure:
    return Failure(row.index, problem.code, str(problem), row.id, row.line, row.key)


def _never_ran(failure: Failure) -> bool:
    """Return whether the row never ran, for example because the server shuts down."""
    is_of_row = failure.code in ("engine_restarted", "out_of_memory")
    return of_failure(failure).status == 503 and not is_of_row
