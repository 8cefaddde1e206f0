"""Batching policies: pure functions from row sizes to index batches.

Every policy puts every row into exactly one batch, is stable (rows of equal size keep their
order), and follows one rule for a row that is larger than the token budget by itself: it runs
alone. A batch's tokens are rows x (longest prompt + most new tokens): padding and the tokens still
to be generated are counted, because they take memory and time like all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packhorse.errors import ConfigError

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
        width = shortest if self.costs.model.rule == "forced-prefix" else longest
        return rows * self.costs.memory.row_bytes(float(width), shared) <= self.max_batch_bytes


AUTO = "auto"
"""What suits the engine."""
SINGLE = "single"
PLANNED = "planned"
CONTINUOUS = "continuous"

Policy = Callable[[Sequence[RowSize], Limits], list[list[int]]]


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


def single(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """One row a batch, in arrival order: the reference for latency and accuracy."""
    return [[index] for index in range(len(sizes))]


def fixed(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """`batch_size` rows a batch in arrival order."""
    return _cut_by_rows(range(len(sizes)), limits.batch_size)


def dynamic(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Arrival order; a batch is closed before it would exceed `max_batch_tokens`."""
    return _cut_by_tokens(sizes, range(len(sizes)), limits)


def sorted_by_length(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Longest first, `batch_size` rows a batch: batch-mates have near-equal length."""
    return _cut_by_rows(longest_first(sizes), limits.batch_size)


def sorted_dynamic(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Longest first, closed before a batch would exceed `max_batch_tokens`."""
    return _cut_by_tokens(sizes, longest_first(sizes), limits)


def planned(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Cut points of least expected time by the engine's measured costs, under `max_batch_tokens`;
    the batches that take longest go first. ConfigError where no costs were measured."""
    from packhorse.batching.planned import best_plan

    costs = measured(limits)
    return [list(rows) for _, rows in best_plan([sizes], limits, costs).batches]


def measured(limits: Limits) -> Costs:
    """The engine's measured costs. ConfigError where there are none."""
    if limits.costs is None:
        raise ConfigError(
            "batching planned needs the engine's measured costs",
            "measure them: packhorse calibrate MODEL",
        )
    return limits.costs


def continuous(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Longest first, for an engine that rows join and leave at every step: batches are only the
    order in which rows are admitted, `batch_size` of them handed over at once."""
    return _cut_by_rows(longest_first(sizes), limits.batch_size)


POLICIES: dict[str, Policy] = {
    SINGLE: single,
    "fixed": fixed,
    "dynamic": dynamic,
    "sorted": sorted_by_length,
    "sorted-dynamic": sorted_dynamic,
    PLANNED: planned,
    CONTINUOUS: continuous,
}


def policy_named(name: str) -> Policy:
    """Raises ConfigError, listing the known names."""
    try:
        return POLICIES[name]
    except KeyError:
        known = ", ".join(POLICIES)
        raise ConfigError(f"unknown batching policy {name!r}", f"known: {known}") from None


def _cut_by_rows(order: Sequence[int], batch_size: int) -> list[list[int]]:
    return [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]


def _cut_by_tokens(
    sizes: Sequence[RowSize], order: Sequence[int], limits: Limits
) -> list[list[int]]:
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
