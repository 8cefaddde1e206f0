"""Expected seconds and memory of batches that have not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packhorse.batching.cost import Costs, WorkCounts
from packhorse.batching.sizes import RowSize
from packhorse.data import Batch
from packhorse.engine_protocol import EngineCapabilities

MEMORY_MARGIN = 1.15
"""Factor on the memory of a batch.

Probes of the same batch vary by this much, because the allocator reuses memory in a different order
each time.
"""


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected cost of a list of batches.

    Attributes:
        seconds: From when the last worker was free before to when the last worker is done.
        peak_bytes: Memory in addition to the loaded model.
        free: When each worker is done (seconds), for the batches that follow.
    """

    seconds: float
    peak_bytes: int
    free: tuple[float, ...] = ()


def expect(
    batches: Sequence[Batch],
    costs: Costs,
    capabilities: EngineCapabilities,
    free: Sequence[float] = (),
) -> Expected:
    """Return the expected cost of `batches`, taken in order by whichever worker is free.

    The memory is that of the largest batches, one per worker. An engine with continuous batching
    runs all rows as one batch.

    Args:
        batches: Batches in the order in which they run.
        costs: Measured costs.
        capabilities: Of the engine.
        free: When each worker is done with earlier batches (seconds); empty for now.
    """
    if capabilities.max_num_seqs:
        return _expect_continuous(
            [row for batch in batches for row in sizes_of(batch)], costs, capabilities
        )
    sizes = [sizes_of(batch) for batch in batches]
    seconds = [costs.batch_seconds(batch) for batch in sizes]
    needs = sorted((batch_bytes(batch, costs, capabilities) for batch in sizes), reverse=True)
    done = costs.free_after(seconds, free)
    return Expected(done[-1] - max(free, default=0.0), sum(needs[: capabilities.workers]), done)


def _expect_continuous(
    sizes: Sequence[RowSize], costs: Costs, capabilities: EngineCapabilities
) -> Expected:
    """Return the expected cost of rows in continuous batching.

    Steps of different rows overlap, so only the steps of the longest row count. The memory is that
    of the steps plus the cache of the longest rows that run at the same time, at most the allocated
    cache.
    """
    if not sizes:
        return Expected(0.0, 0)
    expected = {row.new: costs.expectation(row.new) for row in sizes}
    spans = [expected[row.new].mean - 1 for row in sizes]
    squares = [expected[row.new].mean_square - 2 * expected[row.new].mean + 1 for row in sizes]
    work = WorkCounts(
        batches=1,
        prefill_tokens=sum(row.prompt for row in sizes),
        prefill_pairs=sum(row.prompt * (row.prompt / 2 + row.shared) for row in sizes),
        steps=float(expected[max(expected)].longest(len(sizes))[-1]) - 1,
        row_steps=sum(spans),
        row_contexts=sum(
            span * (row.shared + row.prompt) + square / 2
            for row, span, square in zip(sizes, spans, squares, strict=True)
        ),
    )
    longest = sorted((row.shared + row.prompt + row.new for row in sizes), reverse=True)
    tokens = min(sum(longest[: capabilities.max_num_seqs]), capabilities.preferred_batch_tokens)
    cache = tokens * capabilities.cache_bytes_per_token
    return Expected(costs.model.seconds(work), cache + capabilities.working_bytes)


def batch_bytes(sizes: Sequence[RowSize], costs: Costs, capabilities: EngineCapabilities) -> int:
    """Return the peak memory of a batch in addition to the model (bytes).

    bytes = rows x step bytes + MEMORY_MARGIN x the larger of
        prefill: rows x (s + P) x bytes per token + rows x P x (s + P) x bytes per pair, with P the
            prompt positions computed at once and s the shared ones before them; at least the
            prefill of s alone, which is computed first
        decoding: maximum over the steps t of rows S(t) x (longest prompt + t) x cache bytes
    """
    import numpy as np

    rows, shared, lengths = len(sizes), sizes[0].shared, [row.prompt for row in sizes]
    width = min(lengths) if capabilities.cost_rule == "min-prefix-prefill" else max(lengths)
    prefill = max(
        rows * costs.memory.row_bytes(float(width), shared),
        costs.memory.row_bytes(float(shared), 0),
    )
    alive = rows * costs.expectation(max(row.new for row in sizes)).survival
    positions = shared + max(lengths) + 1 + np.arange(len(alive))
    decoding = float((alive * positions).max()) * capabilities.cache_bytes_per_token
    return round(rows * capabilities.step_bytes_per_row + MEMORY_MARGIN * max(prefill, decoding))


def sizes_of(batch: Batch) -> list[RowSize]:
    """Return the sizes of a batch's rows, with the shared prefix counted separately."""
    return [
        RowSize(
            len(prompt.token_ids) - batch.shared_prefix,
            max(1, prompt.decoding.max_new_tokens),  # reading a prompt costs as much
            batch.shared_prefix,
        )
        for prompt in batch.prompts
    ]
