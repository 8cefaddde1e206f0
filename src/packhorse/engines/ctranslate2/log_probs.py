"""Log-probabilities of tokens that CTranslate2 generates.

The library (version 4.8, src/decoding.cc) gives a step's logits, as the model computed them, to the
callback of the first row that is called in it: one matrix for all rows of the batch, whose order is
longest prompt first. Rows that are called come last in it, in the order they are called; before
them are those whose prompts are still being forced. Besides, it keeps every row's logits of every
step, forced ones included, until the batch has ended. So batches whose rows ask for them are small
enough for KEPT_BYTES, or end early and go on as new ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ctranslate2
import numpy as np
import numpy.typing as npt

from packhorse.data import Prompt, TokenLogProbs
from packhorse.engines.common.log_probs import token_log_probs
from packhorse.engines.common.rows import Row

KEPT_BYTES = 256 << 20
"""Logits of one batch that the library may keep."""
LEAST_STEPS = 128
"""Tokens that a batch of several rows generates before it may continue as a new batch."""
_BYTES_PER_LOGIT = 4


def asks(prompt: Prompt) -> bool:
    return prompt.decoding.top_log_probs is not None


def kept_steps(vocabulary: int) -> int:
    """Steps of one row whose logits fit into KEPT_BYTES."""
    return max(1, KEPT_BYTES // (_BYTES_PER_LOGIT * vocabulary))


def too_many_beyond(window: int, vocabulary: int, elsewhere: str) -> str:
    """Return the message for a row whose logits beyond an attention window are too many."""
    return (
        f"with log-probabilities, CTranslate2 generates at most {kept_steps(vocabulary)} tokens "
        f"beyond this model's attention window of {window}: lower max_new_tokens, or {elsewhere}"
    )


def too_many_logits(vocabulary: int) -> str:
    """Return the message for a row with a seed whose logits are too many."""
    return (
        "with a seed and log-probabilities, CTranslate2 generates at most "
        f"{kept_steps(vocabulary)} tokens of this model: lower max_new_tokens, or leave out one of "
        "them"
    )


def bounded(rows: Sequence[Row], vocabulary: int) -> Iterator[tuple[list[Row], int]]:
    """Yield rows that may run together, longest first, and the number of tokens that they may
    generate before they are restarted."""
    most = kept_steps(vocabulary)
    ordered = sorted(rows, key=lambda row: -len(row.sequence))
    group: list[Row] = []
    for row in ordered:
        together = [*group, row]
        least = min(LEAST_STEPS, max(each.tokens_left for each in together))
        if group and len(together) * (_spread(together) + least) > most:
            yield group, max(1, most // len(group) - _spread(group))
            together = [row]
        group = together
    if group:
        yield group, max(1, most // len(group) - _spread(group))


def _spread(rows: Sequence[Row]) -> int:
    """Tokens of the longest that are forced; rows are ordered longest first."""
    return len(rows[0].sequence) - len(rows[-1].sequence)


@dataclass(slots=True)
class StepLogits:
    """Finds the logits of a row in a step.

    forced: for each row of a batch, the steps in which its prompt is still being forced.
    """

    forced: Sequence[int]
    _matrix: npt.NDArray[np.float32] | None = None
    _next: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int]) -> StepLogits:
        """lengths: of the prompts as they are given to the library (tokens)."""
        return cls([length - min(lengths) for length in lengths])

    def log_probs(self, step: Any, count: int) -> TokenLogProbs:
        """Return those of the token of a callback; must be called for every callback, in order."""
        if step.logits.shape:
            on_cpu = step.logits.to_device(ctranslate2.Device.cpu)
            self._matrix = np.array(on_cpu.to(ctranslate2.DataType.float32))
            self._next = sum(forced > step.step for forced in self.forced)
        assert self._matrix is not None
        logits = self._matrix[self._next]
        self._next += 1
        return token_log_probs(logits, step.token_id, count)
