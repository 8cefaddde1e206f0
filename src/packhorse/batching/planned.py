"""The policy `planned`: cut points of least expected time, by the engine's measured costs."""

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
"""Rows of a batch at most."""
_FEWEST_CEILINGS = 14


@dataclass(frozen=True, slots=True)
class Plan:
    """Batches in the order they go to workers, with the expected seconds of each.

    batches: (group, rows of it) each. free: when the workers are done (seconds), ascending.
    """

    batches: tuple[tuple[int, tuple[int, ...]], ...]
    batch_seconds: tuple[float, ...]
    free: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Until the last worker is done."""
        return self.free[-1]


def best_plan(
    groups: Sequence[Sequence[RowSize]],
    limits: Limits,
    costs: Costs,
    free: Sequence[float] = (),
    *,
    more: bool = False,
) -> Plan:
    """The plan of least expected time for all rows; a batch holds rows of one group.

    Rows of a group, sorted by length, are cut by dynamic programming, for the least sum of batch
    seconds with no batch above a ceiling. Several ceilings, the same ones for all groups, are
    tried, because the least sum may leave workers idle at the end, and of all plans,
    `sorted-dynamic` among them, the one that ends first is taken. Batches go longest first (Graham
    1969, SIAM J. Appl. Math. 17), so that the last ones are short.

    free: when the workers will be done with what was planned before; nothing is now. more: other
    rows will follow, which fill the time of idle workers: the plan of least work is taken among
    those that let no worker end later than `sorted-dynamic` would. From workers that are free
    earlier every order of batches ends earlier, so a job of many windows keeps the law as well.
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
    """Largest batch seconds that are tried, as shares of a worker's part of the whole: from just
    below the whole, so that even a single batch may be split where that ends sooner."""
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
    """costs[stop - 1][rows - 1]: seconds of the batch of `rows` sorted rows that ends at `stop`;
    infinite where it would exceed the limits. A row alone always fits."""

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
        """Segments [start, stop) of least summed seconds, each below `ceiling` or of one row, and
        the seconds of each."""
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
