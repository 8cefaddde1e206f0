"""A row of a client's request: what has come of it so far."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from packhorse.data import Failure, FinishReason, Prompt, Timing, TokenLogProbs


@dataclass(frozen=True, slots=True)
class Finished:
    """A row's completion without its tokens, which came before."""

    reason: FinishReason
    timing: Timing


@dataclass(slots=True, eq=False)
class RequestState:
    """A row of a client's request. token_ids: generated so far. log_probs: of each of them, where
    they are asked for. prompt_log_probs: set with the outcome, if asked for.
    outcome: None while it runs.

    arrived: seconds of `time.monotonic`. readers: each is set whenever a token or the outcome is
    added, and cleared by whoever reads. done: set with the outcome.
    """

    prompt: Prompt
    arrived: float
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[TokenLogProbs] = field(default_factory=list)
    prompt_log_probs: tuple[TokenLogProbs, ...] | None = None
    outcome: Finished | Failure | None = None
    readers: list[asyncio.Event] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def asks_log_probs(self) -> bool:
        return self.prompt.decoding.top_log_probs is not None

    def add(self, token_id: int, log_probs: TokenLogProbs | None = None) -> None:
        self.token_ids.append(token_id)
        if log_probs is not None:
            self.log_probs.append(log_probs)
        self._wake()

    def finish(self, outcome: Finished | Failure) -> None:
        self.outcome = outcome
        self.done.set()
        self._wake()

    def _wake(self) -> None:
        for reader in self.readers:
            reader.set()
