"""Vectorized expected seconds of all consecutive runs of rows sorted by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from packhorse.batching.sizes import RowSize

if TYPE_CHECKING:
    from packhorse.batching.cost import Costs, Floats

LIMIT_LEVELS = 32
"""Maximum number of distinct output limits; limits between two levels are rounded up."""


class Segments:
    """Rows sorted by prompt length, longest first, and the cost of batches cut from them.

    A segment is rows [start, stop). The counts are those of `packhorse.batching.cost.count_work`,
    with expected instead of actual generated tokens and one bound: the steps of a batch are the
    spread of its prompts plus the longest expected output, as if the longest row also generated
    most.

    Args:
        costs: Measured costs.
        sizes: Sizes of the sorted rows.
        largest: Maximum number of rows per segment.
    """

    def __init__(self, costs: Costs, sizes: Sequence[RowSize], largest: int) -> None:
        self._costs = costs
        self._largest = largest
        self.shared = sizes[0].shared
        self.prompt = np.array([row.prompt for row in sizes], dtype=float)
        self.new = _levels(np.array([row.new for row in sizes]))
        levels, self._level = np.unique(self.new, return_inverse=True)
        expected = [costs.expectation(int(level)) for level in levels]
        self._longest = np.stack([each.longest(largest) for each in expected])
        mean = np.array([each.mean for each in expected])[self._level]
        square = np.array([each.mean_square for each in expected])[self._level]
        self._prompts = _sums(self.prompt)
        self._prompt_squares = _sums(self.prompt**2)
        self._means = _sums(mean)
        self._squares = _sums(square)
        self._products = _sums(self.prompt * mean)

    def tokens_to(self, stop: int) -> Floats:
        """Return `batch_tokens` of the segments that end at `stop`, with 1 row, 2 rows, ..."""
        starts = self._starts(stop)
        most_new = np.maximum.accumulate(self.new[starts])
        tokens: Floats = (stop - starts) * (self.shared + self.prompt[starts] + most_new)
        return tokens

    def prefill_bytes_to(self, stop: int) -> Floats:
        """Return the prefill memory of the segments that end at `stop` (bytes)."""
        starts = self._starts(stop)
        width = self.prompt[starts]
        if self._costs.model.rule == "min-prefix-prefill":
            width = np.full_like(width, self.prompt[stop - 1])
        return (stop - starts) * self._costs.memory.row_bytes(width, self.shared)

    def seconds_to(self, stop: int) -> Floats:
        """Return the expected seconds of segments that end at `stop`, with 1 row, 2 rows, ..."""
        starts = self._starts(stop)
        rows = (stop - starts).astype(float)
        shortest, longest = self.prompt[stop - 1], self.prompt[starts]
        prompts = self._prompts[stop] - self._prompts[starts]
        generated = self._means[stop] - self._means[starts]
        squares = self._squares[stop] - self._squares[starts]
        level = np.maximum.accumulate(self._level[starts])
        steps = self._longest[level, stop - starts]
        cost = self._costs.model.coefficients
        rule = self._costs.model.rule
        if rule == "min-prefix-prefill":
            spread = prompts - rows * shortest
            width = np.full_like(longest, shortest)
            spans = spread + generated
            spread_squares = (
                self._prompt_squares[stop]
                - self._prompt_squares[starts]
                - 2 * shortest * prompts
                + rows * shortest**2
            )
            products = self._products[stop] - self._products[starts] - shortest * generated
            contexts = spans * (self.shared + width)
            contexts += (spread_squares + 2 * products + squares) / 2
            steps = steps + longest - shortest
        else:
            width = longest if rule == "padded" else prompts / rows
            spans = generated - rows
            contexts = spans * (self.shared + width) + (squares - 2 * generated + rows) / 2
            steps = steps - 1
        seconds: Floats = (
            cost.batches
            + cost.prefill_tokens * rows * width
            + cost.prefill_pairs * rows * width * (width / 2 + self.shared)
            + cost.steps * steps
            + cost.row_steps * spans
            + cost.row_contexts * contexts
        )
        return seconds

    def _starts(self, stop: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.arange(stop - 1, max(-1, stop - 1 - self._largest), -1)


def _sums(values: Floats) -> Floats:
    """Return prefix sums: the sum of values [a, b) is sums[b] - sums[a]."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _levels(limits: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Floats:
    """Round limits up to at most LIMIT_LEVELS distinct ones."""
    different = np.unique(limits).astype(float)
    if len(different) > LIMIT_LEVELS:
        places = np.linspace(0, len(different) - 1, LIMIT_LEVELS).round().astype(int)
        different = different[places]
    rounded: Floats = different[np.searchsorted(different, limits)]
    return rounded
