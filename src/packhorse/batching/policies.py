"""Batching policies: pure functions from row sizes to batches of row indices.

Every policy puts every row into exactly one batch, is stable (rows of equal size keep their order),
and runs a row that exceeds the token budget alone. The tokens of a batch are rows x (longest prompt
+ maximum new tokens): padding and tokens still to be generated count because they use memory and
time like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from packhorse.batching.sizes import Limits, RowSize, cut_by_tokens, longest_first
from packhorse.errors import ConfigError

if TYPE_CHECKING:
    from packhorse.batching.cost import Costs


AUTO = "auto"
"""Choose the policy that suits the engine."""
SINGLE = "single"
PLANNED = "planned"
CONTINUOUS = "continuous"

Policy = Callable[[Sequence[RowSize], Limits], list[list[int]]]


def single(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Return one row per batch in arrival order: the reference for latency and accuracy."""
    return [[index] for index in range(len(sizes))]


def fixed(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Return `batch_size` rows per batch in arrival order."""
    return _cut_by_rows(range(len(sizes)), limits.batch_size)


def dynamic(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Return batches in arrival order, each closed before it would exceed `max_batch_tokens`."""
    return cut_by_tokens(sizes, range(len(sizes)), limits)


def sorted_by_length(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Return `batch_size` rows per batch, longest first: lengths within a batch are similar."""
    return _cut_by_rows(longest_first(sizes), limits.batch_size)


def sorted_dynamic(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Return batches longest first, each closed before it would exceed `max_batch_tokens`."""
    return cut_by_tokens(sizes, longest_first(sizes), limits)


def planned(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Return the batches of least expected time by the engine's measured costs.

    Batches keep `max_batch_tokens` and go longest first. Raises ConfigError without measured costs.
    """
    from packhorse.batching.planned import best_plan

    costs = require_costs(limits)
    return [list(rows) for _, rows in best_plan([sizes], limits, costs).batches]


def require_costs(limits: Limits) -> Costs:
    """Return the engine's measured costs. Raises ConfigError if there are none."""
    if limits.costs is None:
        raise ConfigError(
            "batching planned needs the engine's measured costs",
            "measure them: packhorse calibrate MODEL",
        )
    return limits.costs


def continuous(sizes: Sequence[RowSize], limits: Limits) -> list[list[int]]:
    """Return rows longest first for an engine with continuous batching.

    Batches only define the order in which rows are admitted, `batch_size` at a time.
    """
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
    """Return the named policy. Raises ConfigError that lists the known names."""
    try:
        return POLICIES[name]
    except KeyError:
        known = ", ".join(POLICIES)
        raise ConfigError(f"unknown batching policy {name!r}", f"known: {known}") from None


def _cut_by_rows(order: Sequence[int], batch_size: int) -> list[list[int]]:
    return [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
