"""Cost model of a batch: work counted from lengths, and seconds from work.

The work of a batch is six counts that follow from the lengths of its rows and the engine's cost
rule. Its seconds are a linear function of these counts, with coefficients measured on this machine
(see `packhorse.calibration`). The number of tokens that a row will generate is estimated from
finished rows, see `OutputLengths`.

Notation: n rows, l a row's own prompt tokens, s the tokens that all rows share, g the tokens it
generates.

    rule                prefill of n x P    steps per row    steps per batch
    padded              P = max l           g - 1            max over rows
    min-prefix-prefill  P = min l           l - P + g        max over rows
    packed              P = l, per row      g - 1            max over rows
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
    """Counts that determine the time of a batch; also their coefficients (seconds each).

    Attributes:
        batches: Number of batches.
        prefill_tokens: Prompt positions computed at once, padding included.
        prefill_pairs: Pairs of positions attended to in that prefill.
        steps: Decoder steps.
        row_steps: Rows summed over the steps.
        row_contexts: Cached positions of these rows summed over the steps; attention reads them,
            and an engine that grows its cache by copying copies them.
    """

    batches: float
    prefill_tokens: float
    prefill_pairs: float
    steps: float
    row_steps: float
    row_contexts: float


def count_work(rule: CostRule, sizes: Sequence[RowSize], generated: Sequence[int]) -> WorkCounts:
    """Return the work of a batch.

    Args:
        rule: Cost rule of the engine.
        sizes: Sizes of its rows.
        generated: Number of tokens that each row generates, the end token included.
    """
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
    """Memory of computing prompts at once (bytes).

    Attributes:
        token_bytes: Memory per token, its cache included.
        pair_bytes: Memory per pair of a row's tokens, for engines that keep all attention scores.
    """

    token_bytes: float
    pair_bytes: float

    def row_bytes(self, width: _Number, shared: float) -> _Number:
        """Return the memory of a row with `width` prompt positions after `shared` computed ones.

        Shared positions count in full although the row needs only their cache.
        """
        return (shared + width) * (self.token_bytes + width * self.pair_bytes)


NO_MEMORY = PrefillMemory(0, 0)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Cost model for one of `workers` workers that are all busy.

    Attributes:
        rule: Cost rule of the engine.
        workers: Number of workers.
        coefficients: Seconds per unit of each count of `WorkCounts`; not negative.
    """

    rule: CostRule
    workers: int
    coefficients: WorkCounts

    def seconds(self, work: WorkCounts) -> float:
        return sum(count * cost for count, cost in zip(work, self.coefficients, strict=True))


@dataclass(slots=True)
class OutputLengths:
    """Distribution of generated tokens per row, from finished rows; the end token is counted.

    The probability of generating more than t tokens is the Kaplan-Meier estimate, with rows that
    reached their limit treated as censored (Kaplan and Meier 1958, J. Am. Stat. Assoc. 53). A prior
    of PRIOR_ROWS rows with a mean of PRIOR_MEAN_TOKENS is used while few rows have finished.

    Attributes:
        ended: Number of rows by length that ended by themselves.
        limited: Number of rows by length that reached their limit.
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
        """Return the probabilities [limit] of generating more than 0, 1, ..., limit - 1 tokens."""
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
        """Return the share of rows that end at each token, assumed equal for all lengths."""
        tokens = sum(length * rows for length, rows in (self.ended + self.limited).items())
        ends = self.ended.total() + PRIOR_ROWS
        return min(1.0, ends / (tokens + PRIOR_ROWS * PRIOR_MEAN_TOKENS))


@dataclass(frozen=True)
class Expectation:
    """Expected output length of rows with one limit.

    Attributes:
        survival: Probability of generating more than 0, 1, ... tokens.
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
        """Return the expected maximum of 0, 1, ..., `rows` rows: sum over t of 1 - (1 - S(t))^n."""
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
    """Measured costs and expected output lengths: what batches that have not run will cost."""

    model: CostModel
    outputs: OutputLengths = field(default_factory=OutputLengths)
    memory: PrefillMemory = NO_MEMORY
    _known: dict[tuple[int, int], Expectation] = field(default_factory=dict, repr=False)

    def expectation(self, limit: int) -> Expectation:
        """Return the expected output length of a row with this limit, from rows seen so far."""
        key = (limit, self.outputs.rows)
        if key not in self._known:
            self._known[key] = Expectation(self.outputs.survival(limit))
        return self._known[key]

    def batch_seconds(self, sizes: Sequence[RowSize]) -> float:
        """Return the expected seconds of one batch."""
        from packhorse.batching.segments import Segments

        ordered = sorted(sizes, key=lambda row: -row.prompt)
        return float(Segments(self, ordered, len(ordered)).seconds_to(len(ordered))[-1])

    def makespan(self, seconds: Sequence[float]) -> float:
        """Return the seconds until all workers are done, taking batches in this order."""
        return self.free_after(seconds)[-1]

    def free_after(self, seconds: Sequence[float], free: Sequence[float] = ()) -> tuple[float, ...]:
        """Return when each worker is done, ascending.

        Args:
            seconds: Durations of the batches.
            free: When each worker is done with earlier batches; empty for now.
        """
        done = sorted(free) or [0.0] * self.model.workers
        for duration in seconds:
            heapq.heapreplace(done, done[0] + duration)
        return tuple(sorted(done))
