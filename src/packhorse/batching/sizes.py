"""Sizes of rows, the limits of a batch, and the one rule by which tokens close a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packhorse.batching.cost import Costs


@dataclass(frozen=True, slots=True)
class RowSize:
    """prompt: tokens of the prompt that are the row's own. new: tokens generated at most.

    shared: tokens before its own that all rows given to a policy have in common and that are
    computed once; each row still holds them in its cache.
    """

    prompt: int
    new: int
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """batch_size: rows a batch. max_batch_tokens: tokens a batch, see `batch_tokens`.

    costs: what batches take on this machine, for policies that ask. max_batch_bytes: memory for
    the prompts of a batch, which policies that count tokens keep where costs were measured.
    """

    batch_size: int
    max_batch_tokens: int
    costs: Costs | None = None
    max_batch_bytes: float = math.inf

    def allow(self, rows: int, longest: int, shortest: int, shared: int, new: int) -> bool:
        """Whether a batch keeps both bounds. longest, shortest: own prompt tokens of a row."""
        if rows * (shared + longest + new) > self.max_batch_tokens:
            return False
        if self.costs is None:
            return True
        width = shortest if self.costs.model.rule == "min-prefix-prefill" else longest
        return rows * self.costs.memory.row_bytes(float(width), shared) <= self.max_batch_bytes


def batch_tokens(rows: Iterable[RowSize]) -> int:
    """Tokens a padded batch occupies: rows x (longest prompt, shared part included + most new)."""
    sizes = list(rows)
    if not sizes:
        return 0
    longest = max(row.shared + row.prompt for row in sizes)
    return len(sizes) * (longest + max(row.new for row in sizes))


def longest_first(sizes: Sequence[RowSize]) -> list[int]:
    """Row indices by prompt length, then by new tokens, both descending; ties keep their order."""
    return sorted(range(len(sizes)), key=lambda index: (-sizes[index].prompt, -sizes[index].new))


def cut_by_tokens(
    sizes: Sequence[RowSize], order: Sequence[int], limits: Limits
) -> list[list[int]]:
    """Batches of `order`, each closed before it would exceed the limits."""
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
