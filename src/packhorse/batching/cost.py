"""What a batch costs: work counted from lengths, seconds from work.

Work of a batch is six counts that follow from the lengths of its rows and the engine's cost rule;
its seconds are a linear function of them, with coefficients measured on this machine (see
`packhorse.calibration`). How many tokens a row will generate is not known before it runs: it is
expected from rows that have ended, see `OutputLengths`.

Notation: n rows, l a row's own prompt tokens, s the tokens all share, g the tokens it generates.

    rule             prefill of n x P       a row's steps    a batch's steps
    padded           P = max l              g - 1            max over rows
    min-prefix-prefill    P = min l              l - P + g        max over rows
    packed           P = l, row by row      g - 1            max over rows
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from packhorse.batching.sizes import RowSize
from packhorse.engine_protocol import CostRule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_Number = TypeVar("_Number", float, "Floats")
PRIOR_MEAN_TOKENS = 128
PRIOR_ROWS = 2


class WorkCounts(NamedTuple):
    """Counts of a batch that its time is made of; also the coefficients, in seconds for each.

    prefill_tokens: prompt positions computed at once, padding included. prefill_pairs: pairs of
    positions attended to in that. steps: decoder steps. row_steps: rows summed over the steps.
    row_contexts: positions in the cache of these rows, summed over the steps: attention reads
    them, and an engine that grows its cache by copying copies them.
    """

    batches: float
    prefill_tokens: float
    prefill_pairs: float
    steps: float
    row_steps: float
    row_contexts: float


def count_work(rule: CostRule, sizes: Sequence[RowSize], generated: Sequence[int]) -> WorkCounts:
    """Work of a batch whose rows generate `generated` tokens each, the end token counted."""
    shared = sizes[0].shared
    lengths = [row.prompt for row in sizes]
    if rule == "min-prefix-prefill":
        widths = [min(lengths)] * len(sizes)
        spans = [row - widths[0] + new for row, new in zip(lengths, generated, strict=True)]
    else:
        widths = lengths if rule == "packed" else [max(lengths)] * len(sizes)
        spans = [new - 1 for new in generated]
    return WorkCounts(
        batches=1,
        prefill_tokens=sum(widths),
        prefill_pairs=sum(width * (width / 2 + shared) for width in widths),
        steps=max(spans),
        row_steps=sum(spans),
        row_contexts=sum(
            span * (shared + width + span / 2) for span, width in zip(spans, widths, strict=True)
        ),
    )


class PrefillMemory(NamedTuple):
    """Memory of computing prompts at once (bytes): for each token, its cache included, and for each
    pair of a row's tokens where an engine keeps all attention scores."""

    token_bytes: float
    pair_bytes: float

    def row_bytes(self, width: _Number, shared: float) -> _Number:
        """Of a row of `width` prompt positions behind `shared` ones that are computed by then;
        these count as the others, though the row has no more than their cache."""
        return (shared + width) * (self.token_bytes + width * self.pair_bytes)


NO_MEMORY = PrefillMemory(0, 0)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of a batch on one of `workers` workers that are all busy.

    rule: the engine's. coefficients: seconds for one of each count of `WorkCounts`, not below 0.
    """

    rule: CostRule
    workers: int
    coefficients: WorkCounts

    def seconds(self, work: WorkCounts) -> float:
        return sum(count * cost for count, cost in zip(work, self.coefficients, strict=True))


@dataclass(slots=True)
class OutputLengths:
    """How many tokens rows generate, from those that ended so far; the end token is counted.

    The probability of generating more than t tokens is Kaplan and Meier's product over the shares
    that ended at each length, rows that reached their limit counted as not ended (Kaplan and Meier
    1958, J. Am. Stat. Assoc. 53). PRIOR_ROWS imagined rows with a mean of PRIOR_MEAN_TOKENS stand
    in where little was seen.
    """

    ended: Counter[int] = field(default_factory=Counter)
    limited: Counter[int] = field(default_factory=Counter)

    def observe(self, tokens: int, *, reached_limit: bool) -> None:
        if reached_limit:
            self.limited[tokens] += 1
        else:
            self.ended[tokens + 1] += 1

    @property
    def rows(self) -> int:
        return self.ended.total() + self.limited.total()

    def survival(self, limit: int) -> Floats:
        """[limit] probabilities that a row generates more than 0, 1, … limit - 1 tokens."""
        import numpy as np

        ended = np.zeros(limit + 1)
        at_risk = np.zeros(limit + 1)
        for length, rows in self.ended.items():
            at_risk[: min(length, limit) + 1] += rows
            if length <= limit:
                ended[length] += rows
        for length, rows in self.limited.items():
            at_risk[: min(length, limit) + 1] += rows
        hazard = (ended + PRIOR_ROWS * self._hazard()) / (at_risk + PRIOR_ROWS)
        hazard[0] = 0.0
        return np.cumprod(1.0 - hazard)[:limit].astype(np.float64)

    def _hazard(self) -> float:
        """Share of rows that end at each token, whatever the length."""
        tokens = sum(length * rows for length, rows in (self.ended + self.limited).items())
        ends = self.ended.total() + PRIOR_ROWS
        return min(1.0, ends / (tokens + PRIOR_ROWS * PRIOR_MEAN_TOKENS))


@dataclass(frozen=True)
class Expectation:
    """What rows with one limit are expected to generate.

    mean, mean_square: of a row's tokens. longest: [n] mean of the longest of n rows, from n = 0.
    """

    survival: Floats

    @cached_property
    def mean(self) -> float:
        return float(self.survival.sum())

    @cached_property
    def mean_square(self) -> float:
        import numpy as np

        return float(((2 * np.arange(len(self.survival)) + 1) * self.survival).sum())

    def longest(self, rows: int) -> Floats:
        """Means of the longest of 0, 1, … `rows` rows: sum over t of 1 - (1 - S(t))^n."""
        import numpy as np

        ended = 1.0 - self.survival
        powers = np.ones_like(ended)
        means = np.zeros(rows + 1)
        for count in range(1, rows + 1):
            powers *= ended
            means[count] = (1.0 - powers).sum()
        return means


@dataclass(frozen=True)
class Costs:
    """Expected costs of batches that have not run: measured ones, and what rows will generate."""

    model: CostModel
    outputs: OutputLengths = field(default_factory=OutputLengths)
    memory: PrefillMemory = NO_MEMORY
    _known: dict[tuple[int, int], Expectation] = field(default_factory=dict, repr=False)

    def expectation(self, limit: int) -> Expectation:
        """What a row with this limit is expected to generate by all that was seen so far."""
        key = (limit, self.outputs.rows)
        if key not in self._known:
            self._known[key] = Expectation(self.outputs.survival(limit))
        return self._known[key]

    def batch_seconds(self, sizes: Sequence[RowSize]) -> float:
        """Seconds of one batch."""
        from packhorse.batching.segments import Segments

        ordered = sorted(sizes, key=lambda row: -row.prompt)
        return float(Segments(self, ordered, len(ordered)).seconds_to(len(ordered))[-1])

    def makespan(self, seconds: Sequence[float]) -> float:
        """Seconds until the last worker is done, when free workers take batches in this order."""
        return self.free_after(seconds)[-1]

    def free_after(self, seconds: Sequence[float], free: Sequence[float] = ()) -> tuple[float, ...]:
        """When each worker is done, ascending. free: when it is done with what it had before."""
        done = sorted(free) or [0.0] * self.model.workers
        for duration in seconds:
            heapq.heapreplace(done, done[0] + duration)
        return tuple(sorted(done))
