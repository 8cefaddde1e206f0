"""What a plan is expected to take: seconds and memory of batches that have not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packhorse.batching.cost import Costs
from packhorse.batching.policies import RowSize
from packhorse.contract import EngineTraits
from packhorse.data import Batch


@dataclass(frozen=True, slots=True)
class Expected:
    """seconds: until the last worker is done. peak_bytes: beside the loaded model (bytes)."""

    seconds: float
    peak_bytes: int


def expect(batches: Sequence[Batch], costs: Costs, traits: EngineTraits) -> Expected:
    """The expectation of `batches`, taken by free workers in their order.

    The memory is that of the largest batches, one on every worker.
    """
    sizes = [sizes_of(batch) for batch in batches]
    seconds = [costs.batch_seconds(batch) for batch in sizes]
    needs = sorted((batch_bytes(batch, costs, traits) for batch in sizes), reverse=True)
    return Expected(costs.makespan(seconds), sum(needs[: traits.workers]))


def batch_bytes(sizes: Sequence[RowSize], costs: Costs, traits: EngineTraits) -> int:
    """Most memory a batch is expected to need beside the model (bytes).

    bytes = rows x step bytes + the larger of
        prefill: rows x P x bytes a token + rows x P x P x bytes a pair, P the prompt positions
        decoding: the most, over the steps t, of rows S(t) x (longest prompt + t) x cache bytes
    """
    import numpy as np

    rows, lengths = len(sizes), [row.shared + row.prompt for row in sizes]
    width = min(lengths) if traits.cost_rule == "forced-prefix" else max(lengths)
    memory = costs.memory
    prefill = rows * (width * memory.token_bytes + width * width * memory.pair_bytes)
    alive = rows * costs.expectation(max(row.new for row in sizes)).survival
    positions = max(lengths) + 1 + np.arange(len(alive))
    decoding = float((alive * positions).max()) * traits.cache_bytes_per_token
    return round(rows * traits.step_bytes_per_row + max(prefill, decoding))


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
