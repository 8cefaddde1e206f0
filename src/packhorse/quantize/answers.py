"""Generate greedy answers to prompts of token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from packhorse.data import Batch, EngineOutput, Prompt, SamplingParams
from packhorse.engine_protocol import Engine
from packhorse.errors import ModelError

_ROWS_PER_BATCH = 16


def generate_greedy(
    engine: Engine,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    advance: Callable[[float], None] = lambda share: None,
) -> list[tuple[int, ...]]:
    """Return greedy answers to `prompts`, in their order; ModelError if the engine fails on one."""
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    rows = [Prompt(index, ids, sampling) for index, ids in enumerate(prompts)]
    found: dict[int, tuple[int, ...]] = {}
    for outcome in engine.run(_batches(rows)):
        if not isinstance(outcome, EngineOutput):
            raise ModelError(f"a calibration prompt cannot be run: {outcome.message}")
        found[outcome.index] = outcome.token_ids
        advance(len(found) / len(rows))
    return [found[index] for index in range(len(rows))]


def _batches(rows: Sequence[Prompt]) -> Iterator[Batch]:
    ordered = sorted(rows, key=lambda row: -len(row.token_ids))
    for start in range(0, len(ordered), _ROWS_PER_BATCH):
        yield Batch(tuple(ordered[start : start + _ROWS_PER_BATCH]))
