"""What CTranslate2's int8 does to a model, in floats on the transformers model.

CTranslate2 4.x (python/ctranslate2/specs/model_spec.py, src/ops/quantize_cpu.cc): each output
channel of a weight and each row (token) of an activation is rounded to -127 ... 127 with one scale,
127 over its largest magnitude; products are exact integers; embeddings are rounded too, one scale
a token. Norms, attention and everything else stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from packhorse.quantization.structure import Structure

LARGEST = 127


def rounded(rows: Tensor) -> Tensor:
    """`rows` as int8 with one scale a row (last dimension) would hold them, in floats."""
    scale = row_scale(rows)
    return torch.round(rows * scale) / scale


def row_scale(rows: Tensor) -> Tensor:
    """Integers a unit, (..., 1): 127 over the largest magnitude of each row, 1 for a row of
    zeros."""
    largest = rows.abs().amax(dim=-1, keepdim=True)
    return torch.where(largest > 0, LARGEST / largest, torch.ones_like(largest))


@contextmanager
def int8_arithmetic(structure: Structure) -> Iterator[None]:
    """While this is open, the model computes as CTranslate2's int8 would; afterwards it is as it
    was, to the bit. Holds a second copy of the weights."""
    kept: list[tuple[Tensor, Tensor]] = []
    hooks: list[Any] = []
    weights = [structure.embedding.weight.data]
    try:
        for site in structure.sites:
            for reader in site.readers:
                weights.append(reader.weight)
                hooks.append(reader.module.register_forward_pre_hook(_round_input))
        with torch.no_grad():
            for weight in weights:
                kept.append((weight, weight.clone()))
                weight.copy_(rounded(weight))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for weight, original in kept:
                weight.copy_(original)


def _round_input(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (rounded(inputs[0]), *inputs[1:])
