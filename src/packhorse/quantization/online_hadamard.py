"""The input of the MLP's second projection, turned while the model runs.

Nothing linear makes that input, so no rotation of it can be folded into the model (QuaRot,
Ashkboos et al. 2024, arXiv 2404.00456, section 4: "online Hadamard"). The packed engine turns it
at the price of a few additions: blocks of n vectors of LANES channels are multiplied, lane by lane,
by a Hadamard matrix H, and the weights W that read them were multiplied by H / n before.
Sylvester's H is symmetric, so H H = n I and (W H / n)(H x) = W x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from packhorse.quantization.hadamard import hadamard_matrix
from packhorse.quantization.structure import Structure

LANES = 16
"""Channels that lie beside each other and are turned alike: a vector of the engine's."""
_LONGEST = 32


def turned_together(channels: int) -> int:
    """n for an activation of so many channels, a power of two; 1 is no turning."""
    vectors, order = channels // LANES, 1
    while order < _LONGEST and vectors % (2 * order) == 0:
        order *= 2
    return order


def turned(rows: Tensor) -> Tensor:
    """Rows (..., channels) with each block multiplied by H."""
    order = turned_together(rows.shape[-1])
    if order == 1:
        return rows
    matrix = hadamard_matrix(order)
    assert matrix is not None, "powers of two have one"
    blocks = rows.reshape(*rows.shape[:-1], -1, order, LANES)
    return torch.einsum("...nl,nm->...ml", blocks, matrix.to(rows.dtype)).reshape(rows.shape)


def turned_back(weight: Tensor) -> Tensor:
    """The weights (out, channels) of a product of turned rows."""
    return turned(weight) / turned_together(weight.shape[-1])


@torch.no_grad()
def rotate_inputs_online(structure: Structure) -> None:
    """From now on the model computes with turned inputs and weights: the same, up to rounding of
    floats. Whoever watches the activation sees it turned."""
    for site in structure.sites:
        if site.kind != "down":
            continue
        for reader in site.readers:
            reader.weight.copy_(turned_back(reader.weight))
            reader.module.register_forward_pre_hook(_turn)


def _turn(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (turned(inputs[0]), *inputs[1:])
