"""Run rows of batch files on the server's engine, with retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from packhorse.data import Completion, Failure, Request
from packhorse.inference.log_probs import completion_note
from packhorse.serve.errors import APIError, of_failure
from packhorse.serve.request_state import Finished
from packhorse.serve.requests import ParsedRequest
from packhorse.serve.responses import read_choice
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
        """Return what to journal beside the text; None for nothing."""
        if isinstance(outcome, Failure):
            return None
        return completion_note(self.service.codec, row, outcome, self.service.decoding)

    async def _attempt(self, row: Request, work: ParsedRequest) -> Completion | Failure:
        """Return the outcome of one attempt. Raises APIError for a row that is refused for good."""
        while True:
            try:
                choices = await self.service.admit(work)
            except APIError as problem:
                if problem.status not in (429, 503):
                    raise
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            try:
                for choice in choices:
                    await choice.row.done.wait()
            finally:
                self.service.release(choices)
            outcomes = [choice.row.outcome for choice in choices]
            failures = [each for each in outcomes if isinstance(each, Failure)]
            if not failures:
                return self._answer(row, choices)
            if not all(map(_never_ran, failures)):
                return next(each for each in failures if not _never_ran(each))
            await asyncio.sleep(_RETRY_SECONDS)

    def _answer(self, row: Request, choices: list[Choice]) -> Completion:
        first, *others = (self._choice(row, each) for each in choices)
        last = max(each.timing.finished for each in (first, *others))
        timing = replace(first.timing, finished=last)
        return replace(first, timing=timing, other_choices=tuple(others))

    def _choice(self, row: Request, choice: Choice) -> Completion:
        ran = choice.row
        assert isinstance(ran.outcome, Finished)
        read, was_cut = read_choice(self.service.codec, choice)
        structured = ran.prompt.decoding.structured_outputs
        return Completion(
            index=row.index,
            id=row.id,
            key=row.key,
            text=read.text,
            token_ids=tuple(ran.token_ids),
            finish_reason=read.finish_reason("stop" if was_cut else ran.outcome.reason),
            prompt_tokens=len(ran.prompt.token_ids),
            timing=ran.outcome.timing,
            log_probs=tuple(ran.log_probs) if ran.asks_log_probs else None,
            prompt_token_ids=ran.prompt.token_ids,
            prompt_log_probs=ran.prompt_log_probs,
            reasoning=read.reasoning,
            reasoning_tokens=read.reasoning_tokens,
            tool_calls=read.tool_calls,
            content=read.content,
            is_json=bool(structured and structured.is_json),
        )


def _failure(row: Request, problem: APIError) -> Failure:
    return Failure(row.index, problem.code, str(problem), row.id, row.line, row.key)


def _never_ran(failure: Failure) -> bool:
    """Return whether the row never ran, for example because the server shuts down."""
    is_of_row = failure.code in ("engine_restarted", "out_of_memory")
    return of_failure(failure).status == 503 and not is_of_row
