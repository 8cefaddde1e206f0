"""Exact int8 matrix multiplication on any CPU.

Without VNNI (or its ARM equivalent) oneDNN makes the left operand unsigned, 0 to 255, and adds two
products at a time in 16 bits (vpmaddubsw). 255 x 127 x 2 does not fit and saturates silently. 255 x
64 x 2 fits, so on such CPUs the weights are split into two parts of at most 64, and every
multiplication runs twice.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_SHAPES = ((1, 64, 32), (16, 576, 48), (64, 512, 96))
"""Shapes that are tested: one row and several, because oneDNN may pick different kernels."""


@cache
def int8_matmul_is_exact() -> bool:
    """Return whether `torch._int_mm` is exact on this CPU, tested with the extreme values."""
    return all(
        _is_exact(torch.full((rows, inputs), row), torch.full((inputs, outputs), weight))
        for rows, inputs, outputs in _SHAPES
        for row in (-128, 127)
        for weight in (-128, 127)
    )


def int8_matmul(rows: Tensor, weight: Tensor, out: Tensor) -> None:
    """Compute out [rows, outputs] int32 = rows [rows, inputs] x weight [inputs, outputs]."""
    torch._int_mm(rows, weight, out=out)  # noqa: SLF001 - there is no public one


def arrange_for_matmul(weight: Tensor) -> Tensor:
    """Return weights [outputs, inputs] as [inputs, outputs] in the fastest memory layout.

    Without VNNI, oneDNN is up to twelve times slower for few rows unless the inputs of an output
    are contiguous.
    """
    return weight.t().contiguous() if int8_matmul_is_exact() else weight.t()


def split_in_two(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return two int8 tensors with values from -64 to 64 whose sum is `weight`."""
    first = weight >> 1
    return first, weight - first


def _is_exact(rows: Tensor, weight: Tensor) -> bool:
    product = torch.empty(len(rows), weight.shape[1], dtype=torch.int32)
    int8_matmul(rows.to(torch.int8), weight.to(torch.int8), product)
    return torch.equal(product, (rows.double() @ weight.double()).int())
