"""What CTranslate2 calls for every token, and where rows go that end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from packhorse.engine_protocol import TokenCallback
from packhorse.engines.common.rows import CallbackError, Result, Row
from packhorse.engines.ctranslate2.log_probs import StepLogits
from packhorse.engines.ctranslate2.seeded import SeededWorkers


@dataclass(frozen=True, slots=True)
class BatchEnded:
    error: BaseException | None


@dataclass(slots=True)
class Run:
    """What the workers of one `run` share. results: rows, and a BatchEnded after each batch."""

    generator: Any
    on_token: TokenCallback | None
    seeded: SeededWorkers
    results: SimpleQueue[Result | BatchEnded] = field(default_factory=SimpleQueue)
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class StepCallback:
    """Called by CTranslate2 in its worker for every token; True ends the row.

    logits: where the rows ask for log-probabilities. forced: first calls that are for tokens of the
    prompt, of a row that runs alone. error: what the caller's watch raised; the
    other rows then end with it.
    """

    rows: list[Row]
    end_ids: frozenset[int]
    run: Run
    is_stopping: Callable[[], bool]
    logits: StepLogits | None = None
    forced: int = 0
    error: CallbackError | None = None

    def __call__(self, step: Any) -> bool:
        if self.error is not None or self.is_stopping():
            return True
        if self.forced:
            self.forced -= 1
            return False
        row, log_probs = self.rows[step.batch_id], None
        if self.logits is not None:
            log_probs = self.logits.log_probs(step, row.prompt.decoding.top_log_probs or 0)
        try:
            result = row.take(step.token_id, self.end_ids, self.run.on_token, log_probs)
        except CallbackError as error:
            self.error = error
            return True
        if result is None:
            return False
        self.run.results.put(result)
        return True
