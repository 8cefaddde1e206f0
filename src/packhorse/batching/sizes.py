"""Row sizes, the limits of a batch, and the rule by which tokens close a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packhorse.batching.cost import Costs


@dataclass(frozen=True, slots=True)
class RowSize:
    """Size of a row.

    Attributes:
        prompt: The row's own prompt tokens.
        new: Maximum number of generated tokens.
        shared: Leading tokens that all rows given to a policy share; they are computed once, but
            every row keeps them in its cache.
    """

    prompt: int
    new: int
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a batch.

    Attributes:
        batch_size: Maximum number of rows.
        max_batch_tokens: Maximum number of tokens, see `batch_tokens`.
        costs: Measured costs, for policies that use them.
        max_batch_bytes: Prefill memory of a batch; token-counting policies obey it if costs are
            known.
    """

    batch_size: int
    max_batch_tokens: int
    costs: Costs | None = None
    max_batch_bytes: float = math.inf

    def allow(self, rows: int, longest: int, shortest: int, shared: int, new: int) -> bool:
        """Return whether a batch is within both bounds.

        Args:
            rows: Number of rows.
            longest: Own prompt tokens of the longest row.
            shortest: Own prompt tokens of the shortest row.
            shared: Shared tokens.
            new: Maximum number of generated tokens.
        """
        if rows * (shared + longest + new) > self.max_batch_tokens:
            return False
        if self.costs is None:
            return True
        width = shortest if self.costs.model.rule == "min-prefix-prefill" else longest
        return rows * self.costs.memory.row_bytes(float(width), shared) <= self.max_batch_bytes


def batch_tokens(rows: Iterable[RowSize]) -> int:
    """Return the tokens of a padded batch: rows x (longest whole prompt + maximum new tokens)."""
    sizes = list(rows)
    if not sizes:
        return 0
    longest = max(row.shared + row.prompt for row in sizes)
    return len(sizes) * (longest + max(row.new for row in sizes))


def longest_first(sizes: Sequence[RowSize]) -> list[int]:
    """Return row indices by prompt length, then new tokens, both descending; the sort is stable."""
    return sorted(range(len(sizes)), key=lambda index: (-sizes[index].prompt, -sizes[index].new))


def cut_by_tokens(
    sizes: Sequence[RowSize], order: Sequence[int], limits: Limits
) -> list[list[int]]:
    """Cut `order` into batches, each closed before it would exceed the limits."""
    batches: list[list[int]] = []
    longest = shortest = most_new = 0
    for index in order:
        row = sizes[index]
        longest, shortest = max(longest, row.prompt), min(shortest, row.prompt)
        most_new = max(most_new, row.new)
        if batches and limits.allow(len(batches[-1]) + 1, longest, shortest, row.shared, most_new):
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = shortest = row.prompt
            most_new = row.new
    return batches
