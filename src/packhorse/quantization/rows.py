"""Passes of calibration rows through a model, its activations being looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from packhorse.quantization.recipe import CalibrationRow
from packhorse.quantization.structure import Site, Structure

TOKENS_AT_ONCE = 768


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows side by side, padded at their ends, which changes nothing before the padding.

    ids, real, scored: (rows, positions); real is False at padding, scored True where the next
    token's distribution matters.
    """

    ids: Tensor
    real: Tensor
    scored: Tensor


def token_batches(rows: Sequence[CalibrationRow]) -> Iterator[TokenBatch]:
    """Batches of rows of near-equal length, of at most TOKENS_AT_ONCE positions or one row."""
    batch: list[CalibrationRow] = []
    for row in sorted(rows, key=lambda row: len(row.inputs)):
        if batch and (len(batch) + 1) * len(row.inputs) > TOKENS_AT_ONCE:
            yield _padded(batch)
            batch = []
        batch.append(row)
    if batch:
        yield _padded(batch)


def _padded(rows: Sequence[CalibrationRow]) -> TokenBatch:
    shape = len(rows), max(len(row.inputs) for row in rows)
    ids = torch.zeros(shape, dtype=torch.long)
    real, scored = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        length = len(row.inputs)
        ids[number, :length] = torch.tensor(row.inputs)
        real[number, :length] = True
        scored[number, row.first_scored : length] = True
    return TokenBatch(ids, real, scored)


@torch.no_grad()
def watch_activations(
    structure: Structure,
    rows: Sequence[CalibrationRow],
    sites: Sequence[Site],
    look: Callable[[Site, Tensor], None],
    advance: Callable[[float], None] = lambda share: None,
) -> None:
    """Calls look(site, activation (tokens, channels)) for every batch of rows.

    advance: is told the share of the rows that are done.
    """
    real = torch.zeros(0, dtype=torch.bool)

    def hook(site: Site) -> Callable[[Any, tuple[Tensor, ...]], None]:
        return lambda module, inputs: look(site, inputs[0][real])

    inner = [site for site in sites if site is not structure.head]
    hooks = [site.readers[0].module.register_forward_pre_hook(hook(site)) for site in inner]
    try:
        done = 0
        for batch in token_batches(rows):
            real = batch.real
            hidden = structure.body(batch.ids, use_cache=False).last_hidden_state
            if len(inner) < len(sites):
                look(structure.head, hidden[real])
            done += len(batch.ids)
            advance(done / len(rows))
    finally:
        for handle in hooks:
            handle.remove()
