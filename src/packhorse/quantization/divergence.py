"""Divergence of simulated int8 from the float32 model on held-out rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from packhorse.quantization.activations import token_batches
from packhorse.quantization.foldable_model import FoldableModel
from packhorse.quantization.int8 import simulate_int8
from packhorse.quantization.recipe import CalibrationRow


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a model's next-token distributions are from the reference.

    Attributes:
        kl: KL divergence of the distributions from the reference (nats per scored token).
        top1: Share of scored tokens at which both rank the same token first.
    """

    kl: float
    top1: float


@dataclass(frozen=True, slots=True)
class Reference:
    """Log-probabilities of the float32 model at the scored tokens of `rows`.

    Attributes:
        rows: Calibration rows.
        log_probs: Natural logarithms, [tokens, vocabulary] per batch, in the order of
            `token_batches`.
    """

    rows: tuple[CalibrationRow, ...]
    log_probs: tuple[Tensor, ...]


def compute_reference(foldable: FoldableModel, rows: Sequence[CalibrationRow]) -> Reference:
    """Compute the reference with the model as it is now.

    Memory: scored tokens x vocabulary x 4 bytes.
    """
    return Reference(tuple(rows), tuple(_log_probs(foldable, rows)))


def measure_int8_divergence(foldable: FoldableModel, reference: Reference) -> Divergence:
    """Return the divergence of the model in simulated int8 from the reference."""
    with simulate_int8(foldable):
        return measure_divergence(foldable, reference)


def measure_divergence(foldable: FoldableModel, reference: Reference) -> Divergence:
    """Return the divergence of the model as it is from the reference."""
    kl = agreeing = 0.0
    count = 0
    for ours, theirs in zip(_log_probs(foldable, reference.rows), reference.log_probs, strict=True):
        kl += float((theirs.exp() * (theirs - ours)).sum(dim=-1, dtype=torch.float64).sum())
        agreeing += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        count += len(theirs)
    return Divergence(kl / count, agreeing / count)


@torch.no_grad()
def _log_probs(foldable: FoldableModel, rows: Sequence[CalibrationRow]) -> Iterator[Tensor]:
    """Yield log-probabilities batch by batch: those over large vocabularies are large."""
    for batch in token_batches(rows):
        hidden = foldable.body(batch.ids, use_cache=False).last_hidden_state
        yield torch.log_softmax(foldable.compute_logits(hidden[batch.scored]), dim=-1)
