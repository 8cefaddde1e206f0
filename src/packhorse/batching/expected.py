"""What a plan is expected to take: seconds and memory of batches that have not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packhorse.batching.cost import Costs, WorkCounts
from packhorse.batching.sizes import RowSize
from packhorse.data import Batch
from packhorse.engine_protocol import EngineCapabilities

MEMORY_MARGIN = 1.15
"""What a batch may take beyond what the same batch took before: probes of one batch differ by as
much, because allocators keep and reuse in another order each time."""


@dataclass(frozen=True, slots=True)
class Expected:
    """seconds: until the last worker is done, from when it was done before. peak_bytes: beside the
    loaded model (bytes). free: when the workers are done (seconds), for what comes next."""

    seconds: float
    peak_bytes: int
    free: tuple[float, ...] = ()


def expect(
    batches: Sequence[Batch],
    costs: Costs,
    capabilities: EngineCapabilities,
    free: Sequence[float] = (),
) -> Expected:
    """The expectation of `batches`, taken by workers in their order as they are free.

    free: when they are done with what came before; empty for nothing. The memory is that of the
    largest batches, one on every worker. An engine that rows join and leave at every step runs all
    of them as one.
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
    """Rows that come and go: steps overlap, so that only those of the longest row count as such.

    The memory is that of steps, and the cache of the longest rows that are under way at the same
    time, at most what was allocated.
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
    """Most memory a batch is expected to need beside the model (bytes).

    bytes = rows x step bytes + MEMORY_WANDERS x the larger of
        prefill: rows x (s + P) x bytes a token + rows x P x (s + P) x bytes a pair, P the prompt
            positions computed at once, s the shared ones before; at least s alone, computed first
        decoding: the most, over the steps t, of rows S(t) x (longest prompt + t) x cache bytes
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
    """Lengths of a batch's rows, the shared prefix apart."""
    return [
        RowSize(
            len(prompt.token_ids) - batch.shared_prefix,
            prompt.decoding.max_new_tokens,
            batch.shared_prefix,
        )
        for prompt in batch.prompts
    ]
