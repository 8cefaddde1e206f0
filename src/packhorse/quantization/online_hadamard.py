"""Online Hadamard rotation of the MLP's down projection: its input is rotated at run time.

That input is the output of a nonlinearity, so its rotation cannot be folded into the model (QuaRot,
Ashkboos et al. 2024, arXiv 2404.00456, section 4: "online Hadamard"). The packed engine rotates it
for the cost of a few additions: blocks of n vectors of LANES channels are multiplied, lane by lane,
by a Hadamard matrix H. The weights W that read them are multiplied by H / n beforehand.
Sylvester's H is symmetric, so H H = n I and (W H / n)(H x) = W x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from packhorse.quantization.foldable_model import FoldableModel
from packhorse.quantization.hadamard import hadamard_matrix

LANES = 16
"""Adjacent channels that are rotated alike: one SIMD vector of the packed engine."""
_MAX_ORDER = 32


def hadamard_order(channels: int) -> int:
    """Return n for an activation of `channels` channels, a power of two; 1 means no rotation."""
    order = 1
    while order < _MAX_ORDER and channels % (2 * order * LANES) == 0:
        order *= 2
    return order


def hadamard_rotated(rows: Tensor) -> Tensor:
    """Return `rows` [..., channels] with each block multiplied by H."""
    order = hadamard_order(rows.shape[-1])
    if order == 1:
        return rows
    matrix = hadamard_matrix(order)
    assert matrix is not None, "powers of two have one"
    blocks = rows.reshape(*rows.shape[:-1], -1, order, LANES)
    return torch.einsum("...nl,nm->...ml", blocks, matrix.to(rows.dtype)).reshape(rows.shape)


def fuse_inverse_hadamard(weight: Tensor) -> Tensor:
    """Return `weight` [out, channels] multiplied by H / n, for inputs that are rotated."""
    return hadamard_rotated(weight) / hadamard_order(weight.shape[-1])


@torch.no_grad()
def rotate_inputs_online(foldable: FoldableModel) -> None:
    """Make the model compute down projections with rotated inputs and weights.

    Its results stay the same up to float rounding. Hooks that observe the activation see it
    rotated.
    """
    for group in foldable.groups:
        if group.kind != "down":
            continue
        for projection in group.projections:
            projection.weight.copy_(fuse_inverse_hadamard(projection.weight))
            projection.module.register_forward_pre_hook(_rotate_input)


def _rotate_input(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (hadamard_rotated(inputs[0]), *inputs[1:])
