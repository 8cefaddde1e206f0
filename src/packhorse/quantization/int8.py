"""Simulation of CTranslate2's int8 on the transformers model, in floats (fake quantization).

CTranslate2 4.x (python/ctranslate2/specs/model_spec.py, src/ops/quantize_cpu.cc) rounds each output
channel of a weight and each row (token) of an activation to -127 ... 127 with one scale, 127 over
its largest magnitude. Products are exact integers. Embeddings are rounded too, with one scale per
token. Norms, attention and everything else stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from packhorse.quantization.foldable_model import FoldableModel

LARGEST = 127


def fake_quantize(rows: Tensor) -> Tensor:
    """Return `rows` rounded to int8 with one scale per row (last dimension), in floats."""
    scale = row_scale(rows)
    return torch.round(rows * scale) / scale


def row_scale(rows: Tensor) -> Tensor:
    """Return 127 over the largest magnitude of each row, [..., 1]; 1 for a row of zeros."""
    largest = rows.abs().amax(dim=-1, keepdim=True)
    return torch.where(largest > 0, LARGEST / largest, torch.ones_like(largest))


@contextmanager
def simulate_int8(foldable: FoldableModel) -> Iterator[None]:
    """Let the model compute as CTranslate2's int8 does within the context.

    Afterwards the model is restored bit by bit. Holds a second copy of the weights.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    hooks: list[Any] = []
    weights = [foldable.embedding.weight.data]
    try:
        for group in foldable.groups:
            for projection in group.projections:
                weights.append(projection.weight)
                hooks.append(projection.module.register_forward_pre_hook(_round_input))
        with torch.no_grad():
            for weight in weights:
                kept.append((weight, weight.clone()))
                weight.copy_(fake_quantize(weight))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for weight, original in kept:
                weight.copy_(original)


def _round_input(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (fake_quantize(inputs[0]), *inputs[1:])
