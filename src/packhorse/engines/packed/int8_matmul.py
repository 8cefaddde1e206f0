"""Exact products of int8 numbers on any CPU.

Without VNNI (and its like on ARM) oneDNN makes rows unsigned, 0 to 255, and multiplies them two
at a time into 16 bits, where 255 x 127 x 2 does not fit: the sum is cut off without a word
(vpmaddubsw). 255 x 64 x 2 fits, so there weights are held as two parts of at most 64, and every
product is two.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_SHAPES = ((1, 64, 32), (16, 576, 48), (64, 512, 96))
"""Of products that are tried: one row and several, since kernels may differ."""


@cache
def int8_matmul_is_exact() -> bool:
    """Whether `torch._int_mm` is exact for all int8 numbers here; tries the largest."""
    return all(
        _is_exact(torch.full((rows, inputs), row), torch.full((inputs, outputs), weight))
        for rows, inputs, outputs in _SHAPES
        for row in (-128, 127)
        for weight in (-128, 127)
    )


def int8_matmul(rows: Tensor, weight: Tensor, out: Tensor) -> None:
    """out [rows, outputs] int32 = rows [rows, inputs] x weight [inputs, outputs], both int8."""
    torch._int_mm(rows, weight, out=out)  # noqa: SLF001 - no public one


def arrange_for_matmul(weight: Tensor) -> Tensor:
    """Weights [outputs, inputs] as [inputs, outputs], as they are multiplied fastest. Without VNNI,
    oneDNN takes up to twelve times as long for few rows unless an output's inputs lie together."""
    return weight.t().contiguous() if int8_matmul_is_exact() else weight.t()


def split_in_two(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two int8 tensors of numbers from -64 to 64 whose sum is `weight`."""
    first = weight >> 1
    return first, weight - first


def _is_exact(rows: Tensor, weight: Tensor) -> bool:
    product = torch.empty(len(rows), weight.shape[1], dtype=torch.int32)
    int8_matmul(rows.to(torch.int8), weight.to(torch.int8), product)
    return torch.equal(product, (rows.double() @ weight.double()).int())
