"""What rounding changes in what the model says, by simulation on held-out rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from packhorse.quantization.int8 import int8_arithmetic
from packhorse.quantization.recipe import CalibrationRow
from packhorse.quantization.rows import token_batches
from packhorse.quantization.structure import Structure


@dataclass(frozen=True, slots=True)
class Divergence:
    """kl: of the distributions after rounding from those before, nats a scored token. top1: share
    of scored tokens where both prefer the same one."""

    kl: float
    top1: float


@dataclass(frozen=True, slots=True)
class Reference:
    """Natural logs of the float32 model's distributions at the scored tokens of `rows`, in the
    order of `token_batches`: (tokens, vocabulary) a batch."""

    rows: tuple[CalibrationRow, ...]
    logs: tuple[Tensor, ...]


def reference(structure: Structure, rows: Sequence[CalibrationRow]) -> Reference:
    """What the model says now; memory: scored tokens x vocabulary x 4 bytes."""
    return Reference(tuple(rows), tuple(_logs(structure, rows)))


def int8_divergence(structure: Structure, reference: Reference) -> Divergence:
    """Of the model computed in int8 from the reference."""
    with int8_arithmetic(structure):
        return divergence(structure, reference)


def divergence(structure: Structure, reference: Reference) -> Divergence:
    """Of the model as it is from the reference."""
    kl = agreeing = 0.0
    count = 0
    for ours, theirs in zip(_logs(structure, reference.rows), reference.logs, strict=True):
        kl += float((theirs.exp() * (theirs - ours)).sum(dim=-1, dtype=torch.float64).sum())
        agreeing += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        count += len(theirs)
    return Divergence(kl / count, agreeing / count)


@torch.no_grad()
def _logs(structure: Structure, rows: Sequence[CalibrationRow]) -> Iterator[Tensor]:
    """A batch at a time: distributions over large vocabularies are large."""
    head = structure.head.readers[0].module
    for batch in token_batches(rows):
        hidden = structure.body(batch.ids, use_cache=False).last_hidden_state
        yield torch.log_softmax(head(hidden[batch.scored]), dim=-1)
