"""The policy `planned`: cut points of least expected time, by the engine's measured costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from packhorse.batching.policies import Limits, RowSize, longest_first, sorted_dynamic
from packhorse.batching.segments import Segments

if TYPE_CHECKING:
    from packhorse.batching.cost import Costs, Floats

LARGEST_BATCH = 256
"""Rows of a batch at most."""
_CEILINGS = tuple(1.5 * 0.8**power for power in range(14))
"""Largest batch seconds that are tried, as shares of a worker's part of the whole."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Index batches in the order they go to workers, with the expected seconds of each.

    seconds: until the last worker is done.
    """

    batches: tuple[tuple[int, ...], ...]
    batch_seconds: tuple[float, ...]
    seconds: float


def best_plan(sizes: Sequence[RowSize], limits: Limits, costs: Costs) -> Plan:
    """The plan of least expected time.

    Rows sorted by length are cut by dynamic programming, for the least sum of batch seconds with no
    batch above a ceiling. Several ceilings are tried, because the least sum may leave workers idle
    at the end, and of all plans, `sorted-dynamic` among them, the one that ends first is taken.
    Batches go longest first (Graham 1969, SIAM J. Appl. Math. 17), so that the last ones are short.
    """
    if not sizes:
        return Plan((), (), 0.0)
    order = longest_first(sizes)
    table = _SegmentTable.of([sizes[index] for index in order], limits, costs)
    least = table.cut(ceiling=float("inf"))
    whole = sum(table.seconds(least))
    ceilings = (whole / costs.model.workers * share for share in _CEILINGS)
    cuts = [least]
    if costs.model.workers > 1:
        cuts += [table.cut(ceiling) for ceiling in ceilings]
    plans = [
        _plan([order[start:stop] for start, stop in cut], table.seconds(cut), costs) for cut in cuts
    ]
    simple = sorted_dynamic(sizes, limits)
    seconds = [costs.batch_seconds([sizes[index] for index in batch]) for batch in simple]
    plans += [
        _plan(simple, seconds, costs),
        Plan(tuple(map(tuple, simple)), tuple(seconds), costs.makespan(seconds)),
    ]
    return min(plans, key=lambda plan: plan.seconds)


def _plan(batches: Sequence[Sequence[int]], seconds: Sequence[float], costs: Costs) -> Plan:
    """Batches longest first; equal ones keep their order."""
    order = sorted(range(len(batches)), key=lambda index: -seconds[index])
    ordered = tuple(seconds[index] for index in order)
    return Plan(tuple(tuple(batches[index]) for index in order), ordered, costs.makespan(ordered))


@dataclass(frozen=True, slots=True)
class _SegmentTable:
    """costs[stop - 1][rows - 1]: seconds of the batch of `rows` sorted rows that ends at `stop`;
    infinite where it would exceed the token budget. A row alone always fits."""

    costs: tuple[Floats, ...]

    @classmethod
    def of(cls, sizes: Sequence[RowSize], limits: Limits, costs: Costs) -> _SegmentTable:
        segments = Segments(costs, sizes, LARGEST_BATCH)
        table = []
        for stop in range(1, len(sizes) + 1):
            seconds = segments.seconds_to(stop)
            exceeds = segments.tokens_to(stop) > limits.max_batch_tokens
            exceeds[0] = False
            table.append(np.where(exceeds, np.inf, seconds))
        return cls(tuple(table))

    def cut(self, ceiling: float) -> list[tuple[int, int]]:
        """Segments [start, stop) of least summed seconds, each below `ceiling` or of one row."""
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
            segments.append((stop - rows[stop], stop))
            stop -= rows[stop]
        return segments[::-1]

    def seconds(self, cut: Sequence[tuple[int, int]]) -> list[float]:
        return [float(self.costs[stop - 1][stop - start - 1]) for start, stop in cut]
