"""What a plan is expected to take: seconds and memory of batches that have not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packhorse.batching.cost import Costs
from packhorse.batching.memory import peak_bytes
from packhorse.batching.policies import RowSize
from packhorse.contract import EngineTraits
from packhorse.data import Batch


@dataclass(frozen=True, slots=True)
class Expected:
    """seconds: until the last worker is done. peak_bytes: beside the loaded model (bytes)."""

    seconds: float
    peak_bytes: int


def expect(batches: Sequence[Batch], costs: Costs, traits: EngineTraits) -> Expected:
    """The expectation of `batches`, taken by free workers in their order."""
    sizes = [sizes_of(batch) for batch in batches]
    seconds = [costs.batch_seconds(batch) for batch in sizes]
    return Expected(costs.makespan(seconds), peak_bytes(traits, sizes, costs.prefill_bytes))


def sizes_of(batch: Batch) -> list[RowSize]:
    return [
        RowSize(
            len(prompt.token_ids) - batch.shared_prefix,
            prompt.decoding.max_new_tokens,
            batch.shared_prefix,
        )
        for prompt in batch.prompts
    ]
