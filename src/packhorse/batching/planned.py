"""The policy `planned`: cut points of least expected time, from the engine's measured costs."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from packhorse.batching.segments import Segments
from packhorse.batching.sizes import Limits, RowSize, cut_by_tokens, longest_first

if TYPE_CHECKING:
    from packhorse.batching.cost import Costs, Floats

LARGEST_BATCH = 256
"""Maximum number of rows per batch."""
_FEWEST_CEILINGS = 14


@dataclass(frozen=True, slots=True)
class Plan:
    """Batches in the order in which they go to workers.

    Attributes:
        batches: (group, its rows) per batch.
        batch_seconds: Expected seconds per batch.
        free: When each worker is done (seconds), ascending.
    """

    batches: tuple[tuple[int, tuple[int, ...]], ...]
    batch_seconds: tuple[float, ...]
    free: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Seconds until the last worker is done."""
        return self.free[-1]


def best_plan(
    groups: Sequence[Sequence[RowSize]],
    limits: Limits,
    costs: Costs,
    free: Sequence[float] = (),
    *,
    more: bool = False,
) -> Plan:
    """Return the plan of least expected time for all rows; each batch holds rows of one group.

    The rows of a group, sorted by length, are cut by dynamic programming for the least sum of batch
    seconds with no batch above a ceiling. Because the least sum may leave workers idle at the end,
    several ceilings are tried, the same for all groups, and of all plans, `sorted-dynamic`
    included, the one that finishes first is chosen. Batches go longest first (Graham 1969, SIAM J.
    Appl. Math. 17), so that the last ones are short.

    If more rows will follow, they fill the time of idle workers. Then the plan of least work is
    chosen among those in which no worker finishes later than with `sorted-dynamic`. Workers that
    are free earlier finish any order of batches earlier, so this also holds for jobs of many
    windows.

    Args:
        groups: Row sizes per group.
        limits: Bounds of a batch.
        costs: Measured costs.
        free: When each worker is done with earlier batches (seconds); empty for now.
        more: Whether other rows will follow.
    """
    orders = [longest_first(sizes) for sizes in groups]
    tables = [
        _SegmentCosts.build([sizes[index] for index in order], limits, costs)
        for sizes, order in zip(groups, orders, strict=True)
    ]
    free = tuple(free) or (0.0,) * costs.model.workers

    def cut(ceiling: float) -> list[_Timed]:
        return [
            (seconds, group, tuple(order[start:stop]))
            for group, (table, order) in enumerate(zip(tables, orders, strict=True))
            for (start, stop), seconds in table.cut(ceiling)
        ]

    cuts = [cut(float("inf"))]
    if costs.model.workers > 1:
        part = sum(seconds for seconds, _, _ in cuts[0]) / costs.model.workers
        cuts += [cut(part * share) for share in _list_ceilings(costs.model.workers)]
    simple = [
        (costs.batch_seconds([sizes[index] for index in batch]), group, tuple(batch))
        for group, sizes in enumerate(groups)
        for batch in cut_by_tokens(sizes, longest_first(sizes), limits)
    ]
    plans = [
        _schedule_batches(sorted(each, key=lambda batch: -batch[0]), costs, free) for each in cuts
    ]
    plans.append(_schedule_batches(sorted(simple, key=lambda batch: -batch[0]), costs, free))
    plain = _schedule_batches(simple, costs, free)
    if not more:
        return min([*plans, plain], key=lambda plan: plan.seconds)
    ahead = [plan for plan in plans if all(map(operator.le, plan.free, plain.free))]
    return min([*ahead, plain], key=lambda plan: (sum(plan.batch_seconds), plan.seconds))


def _list_ceilings(workers: int) -> Iterator[float]:
    """Yield the ceilings to try, as shares of a worker's part of the total.

    They start just below the total, so that even a single batch may be split if that is faster.
    """
    highest = math.floor(math.log(workers / 1.5) / math.log(1.25))
    for power in range(-highest, _FEWEST_CEILINGS):
        yield 1.5 * 0.8**power


_Timed = tuple[float, int, tuple[int, ...]]
"""Seconds, group and rows of a batch."""


def _schedule_batches(batches: Sequence[_Timed], costs: Costs, free: Sequence[float]) -> Plan:
    seconds = tuple(batch[0] for batch in batches)
    return Plan(tuple(batch[1:] for batch in batches), seconds, costs.free_after(seconds, free))


@dataclass(frozen=True, slots=True)
class _SegmentCosts:
    """Seconds of all batches that can be cut from sorted rows.

    Attributes:
        costs: costs[stop - 1][rows - 1] is the time of the batch of `rows` rows that ends at
            `stop`; infinite if it exceeds the limits. A single row always fits.
    """

    costs: tuple[Floats, ...]

    @classmethod
    def build(cls, sizes: Sequence[RowSize], limits: Limits, costs: Costs) -> _SegmentCosts:
        if not sizes:
            return cls(())
        segments = Segments(costs, sizes, LARGEST_BATCH)
        table = []
        for stop in range(1, len(sizes) + 1):
            seconds = segments.seconds_to(stop)
            exceeds = segments.tokens_to(stop) > limits.max_batch_tokens
            exceeds |= segments.prefill_bytes_to(stop) > limits.max_batch_bytes
            exceeds[0] = False
            table.append(np.where(exceeds, np.inf, seconds))
        return cls(tuple(table))

    def cut(self, ceiling: float) -> list[tuple[tuple[int, int], float]]:
        """Return the segments [start, stop) of least total seconds, and the seconds of each.

        Each segment takes at most `ceiling` seconds or holds a single row.
        """
        least = np.zeros(len(self.costs) + 1)
        rows = [0] * (len(self.costs) + 1)
        for stop, seconds in enumerate(self.costs, start=1):
            allowed = np.where(seconds > ceiling, np.inf, seconds)
            allowed[0] = seconds[0]
            totals = allowed + least[stop - len(seconds) : stop][::-1]
            best = int(np.argmin(totals))
            least[stop], rows[stop] = totals[best], best + 1
        segments = []
        stop = len(self.costs)
        while stop:
            start = stop - rows[stop]
            segments.append(((start, stop), float(self.costs[stop - 1][rows[stop] - 1])))
            stop = start
        return segments[::-1]
