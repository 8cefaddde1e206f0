"""Rotation of the residual stream: QuaRot (Ashkboos et al. 2024, arXiv 2404.00456), section 4.

RMSNorm without gain commutes with any orthogonal matrix Q: norm(x Q) = norm(x) Q. The gains are
folded into the projections that read them. Then the embedding and all projections that write to the
residual stream are multiplied by Q, and all that read it by Qᵀ, and the model computes the same.
With a signed Hadamard matrix for Q, the few channels that are a hundred times larger than the rest
are spread over all channels, and int8 with one scale per row loses nothing to them. Values and the
output projection are rotated in the same way within each head, so that attention mixes rows as
before. If the stream cannot be rotated (`Decoder.rotates_residual`), values are rotated alone.
QuaRot's online rotations (queries, keys, the input of `down`) are left out: nothing is added to the
model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from packhorse.quantization.foldable_model import Attention, FoldableModel
from packhorse.quantization.hadamard import rotation_matrix

_ROWS_AT_ONCE = 4096


@torch.no_grad()
def rotate(foldable: FoldableModel, seed: int) -> None:
    """Rotate the residual stream, if possible, and values within their heads.

    The model's results stay the same up to float rounding. Gains of the norms become 1.

    Args:
        foldable: The model, with RMSNorm.
        seed: Seed of the signs of the Hadamard matrix.
    """
    assert foldable.attentions, "models with LayerNorm are not rotated"
    if foldable.norms:
        _fold_gains(foldable)
        matrix = rotation_matrix(foldable.hidden_size, seed)
        _multiply(foldable.embedding.weight.data, matrix)
        for _, projections in foldable.norms:
            for projection in projections:
                _multiply(projection.weight, matrix)
        for writer in foldable.writers:
            _multiply_outputs(writer.weight, writer.bias, matrix)
    for attention in foldable.attentions:
        _rotate_values(attention)


def _fold_gains(foldable: FoldableModel) -> None:
    for gain, projections in foldable.norms:
        for projection in projections:
            projection.weight.mul_(gain + foldable.decoder.norm_offset)
        gain.fill_(1.0 - foldable.decoder.norm_offset)


def _rotate_values(attention: Attention) -> None:
    """Rotate the values of each head, v' = v R, and undo it in the output projection, o' = o R."""
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
    """Replace weight [out, in] by weight @ matrix, computed in float64."""
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        rows = weight[start : start + _ROWS_AT_ONCE]
        rows.copy_(rows.double() @ matrix)


def _multiply_outputs(weight: Tensor, bias: Tensor | None, matrix: Tensor) -> None:
    """Change a projection so that its output y becomes y @ matrix."""
    weight.copy_(matrix.T @ weight.double())
    if bias is not None:
        bias.copy_(bias.double() @ matrix)
