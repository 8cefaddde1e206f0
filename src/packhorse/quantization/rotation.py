"""Rotation of the residual stream: QuaRot (Ashkboos et al. 2024, arXiv 2404.00456), section 4.

RMSNorm without gain commutes with any orthogonal matrix Q: norm(x Q) = norm(x) Q. So a model whose
gains were multiplied into the weights that read them computes the same when its embedding and all
that writes to the residual stream are multiplied by Q, and all that reads it by Qᵀ. With a signed
Hadamard matrix for Q the few channels that are a hundred times larger than the rest are spread
over all channels, and int8 with one scale a row loses nothing to them. Values and the projection
that reads them are rotated in the same way within each head, so that attention may mix rows as
before. What QuaRot rotates while the model runs (queries, keys, the input of `down`) is left out:
nothing is added to the model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from packhorse.quantization.hadamard import rotation_matrix
from packhorse.quantization.structure import Attention, Structure

_ROWS_AT_ONCE = 4096


@torch.no_grad()
def rotate(structure: Structure, seed: int) -> None:
    """Rotates the stream, and values within their heads; computes the same up to float rounding.

    seed: of the signs of the Hadamard matrix. Gains of the norms become 1.
    """
    assert structure.norms, "a stream without RMSNorm cannot be rotated"
    _fold_gains(structure)
    matrix = rotation_matrix(structure.hidden_size, seed)
    _multiply(structure.embedding.weight.data, matrix)
    for _, readers in structure.norms:
        for reader in readers:
            _multiply(reader.weight, matrix)
    for writer in structure.writers:
        _multiply_outputs(writer.weight, writer.bias, matrix)
    for attention in structure.attentions:
        _rotate_values(attention)


def _fold_gains(structure: Structure) -> None:
    for gain, readers in structure.norms:
        for reader in readers:
            reader.weight.mul_(gain)
        gain.fill_(1.0)


def _rotate_values(attention: Attention) -> None:
    """v' = v R and o' = o R within each head: what attention mixes is turned, and turned back."""
    size = attention.head_dim
    matrix = rotation_matrix(size, None)
    values, output = attention.values, attention.output
    for head in range(len(values.weight) // size):
        rows = slice(head * size, (head + 1) * size)
        bias = None if values.bias is None else values.bias[rows]
        _multiply_outputs(values.weight[rows], bias, matrix)
    for head in range(output.weight.shape[1] // size):
        _multiply(output.weight[:, head * size : (head + 1) * size], matrix)


def _multiply(weight: Tensor, matrix: Tensor) -> None:
    """weight (out, in) becomes weight @ matrix, computed in float64."""
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        rows = weight[start : start + _ROWS_AT_ONCE]
        rows.copy_(rows.double() @ matrix)


def _multiply_outputs(weight: Tensor, bias: Tensor | None, matrix: Tensor) -> None:
    """A projection's output y becomes y @ matrix."""
    weight.copy_(matrix.T @ weight.double())
    if bias is not None:
        bias.copy_(bias.double() @ matrix)
