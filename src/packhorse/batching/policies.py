"""Batching policies: pure functions from row sizes to index batches.

Every policy puts every row into exactly one batch, is stable (rows of equal size keep their
order), and follows one rule for a row that is larger than the token budget by itself: it runs
alone. A batch's tokens are rows x (longest prompt + most new tokens): padding and the tokens still
to be generated are counted, because they take memory and time like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from packhorse.batching.sizes import Limits, RowSize, cut_by_tokens, longest_first
from packhorse.errors import ConfigError

if TYPE_CHECKING:
    from packhorse.batching.cost import Costs


AUTO = "auto"
"""What suits the engine."""
SINGLE = "single"
PLANNED = "planned"
CONTINUOUS = "continuous"

Policy = Callable[[Sequence[RowSize], Limits], list[list[int]]]


def single(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """One row a batch, in arrival order: the reference for latency and accuracy."""
    return [[index] for index in range(len(sizes))]


def fixed(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """`batch_size` rows a batch in arrival order."""
    return _cut_by_rows(range(len(sizes)), limits.batch_size)


def dynamic(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Arrival order; a batch is closed before it would exceed `max_batch_tokens`."""
    return cut_by_tokens(sizes, range(len(sizes)), limits)


def sorted_by_length(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Longest first, `batch_size` rows a batch: batch-mates have near-equal length."""
    return _cut_by_rows(longest_first(sizes), limits.batch_size)


def sorted_dynamic(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Longest first, closed before a batch would exceed `max_batch_tokens`."""
    return cut_by_tokens(sizes, longest_first(sizes), limits)


def planned(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Cut points of least expected time by the engine's measured costs, under `max_batch_tokens`;
    the batches that take longest go first. ConfigError where no costs were measured."""
    from packhorse.batching.planned import best_plan

    costs = require_costs(limits)
    return [list(rows) for _, rows in best_plan([sizes], limits, costs).batches]


def require_costs(limits: Limits) -> Costs:
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


def get_policy(name: str) -> Policy:
    """Raises ConfigError, listing the known names."""
    try:
        return POLICIES[name]
    except KeyError:
        known = ", ".join(POLICIES)
        raise ConfigError(f"unknown batching policy {name!r}", f"known: {known}") from None


def _cut_by_rows(order: Sequence[int], batch_size: int) -> list[list[int]]:
    return [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
