"""Run calibration rows through a model and observe the inputs of its linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from packhorse.quantization.foldable_model import FoldableModel, LinearGroup
from packhorse.quantization.recipe import CalibrationRow

MAX_BATCH_TOKENS = 768


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows padded on the right, which changes nothing before the padding.

    Attributes:
        ids: Token ids, [rows, positions].
        mask: Attention mask, [rows, positions]: False at padding.
        scored: [rows, positions]: True if the distribution of the next token is scored.
    """

    ids: Tensor
    mask: Tensor
    scored: Tensor


def token_batches(rows: Sequence[CalibrationRow]) -> Iterator[TokenBatch]:
    """Yield batches of rows of near-equal length, MAX_BATCH_TOKENS positions or one row each."""
    batch: list[CalibrationRow] = []
    for row in sorted(rows, key=lambda row: len(row.inputs)):
        if batch and (len(batch) + 1) * len(row.inputs) > MAX_BATCH_TOKENS:
            yield _padded(batch)
            batch = []
        batch.append(row)
    if batch:
        yield _padded(batch)


def _padded(rows: Sequence[CalibrationRow]) -> TokenBatch:
    shape = len(rows), max(len(row.inputs) for row in rows)
    ids = torch.zeros(shape, dtype=torch.long)
    mask, scored = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        length = len(row.inputs)
        ids[number, :length] = torch.tensor(row.inputs)
        mask[number, :length] = True
        scored[number, row.first_scored : length] = True
    return TokenBatch(ids, mask, scored)


@torch.no_grad()
def observe_activations(
    foldable: FoldableModel,
    rows: Sequence[CalibrationRow],
    groups: Sequence[LinearGroup],
    observe: Callable[[LinearGroup, Tensor], None],
    advance: Callable[[float], None] = lambda share: None,
) -> None:
    """Call `observe` with the input of each linear group for every batch of rows.

    Args:
        foldable: The model.
        rows: Calibration rows.
        groups: Linear groups to observe.
        observe: Receives the group and its activation, [tokens, channels], padding left out.
        advance: Receives the share of the rows done.
    """
    mask = torch.zeros(0, dtype=torch.bool)

    def hook(group: LinearGroup) -> Callable[[Any, tuple[Tensor, ...]], None]:
        return lambda module, inputs: observe(group, inputs[0][mask])

    inner = [group for group in groups if group is not foldable.head]
    hooks = [group.projections[0].module.register_forward_pre_hook(hook(group)) for group in inner]
    try:
        done = 0
        for batch in token_batches(rows):
            mask = batch.mask
            hidden = foldable.body(batch.ids, use_cache=False).last_hidden_state
            if len(inner) < len(groups):
                observe(foldable.head, hidden[mask])
            done += len(batch.ids)
            advance(done / len(rows))
    finally:
        for handle in hooks:
            handle.remove()
