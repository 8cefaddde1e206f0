"""GPTQ: round weights to int8 so that outputs stay close (Frantar et al. 2022, arXiv 2210.17323,
algorithm 1).

Rounding to nearest minimises the error of each weight; GPTQ minimises the error of w x for the x
that occur. Weights are rounded column by column, in order of decreasing activation (act-order), and
the error of each column is compensated by the columns not rounded yet, through the inverse of the
Hessian H = sum x xᵀ over calibration tokens. The scale of each output channel is CTranslate2's, 127
over its largest magnitude, and every channel keeps one weight of magnitude 127: so the conversion,
which rounds to nearest, changes nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from packhorse.quantization.activations import observe_activations
from packhorse.quantization.foldable_model import FoldableModel, LinearGroup
from packhorse.quantization.int8 import LARGEST, row_scale
from packhorse.quantization.recipe import CalibrationRow

_BLOCK = 64
_DAMPING = 0.01
_HESSIAN_BYTES = 1_500_000_000
_PART_BYTES = 128_000_000
"""Weights that are rounded at a time (bytes); five copies of them are held."""


def working_bytes(channels: int) -> int:
    """Return the most memory that `round_weights` takes beside the model (bytes).

    It holds Hessians, the inverse of one in float64, and the weights that it rounds.

    Args:
        channels: Input channels of the widest linear group.
    """
    hessians = max(_HESSIAN_BYTES, 4 * channels**2)
    return hessians + 24 * channels**2 + 5 * max(_PART_BYTES, 4 * channels)


def round_weights(
    foldable: FoldableModel,
    rows: Sequence[CalibrationRow],
    advance: Callable[[float], None] = lambda share: None,
) -> None:
    """Round the weights of all linear groups in place; the model then computes with int8 weights.

    Hessians of as many groups as fit into 1.5 GB are computed in one pass over the rows.

    Args:
        foldable: The model.
        rows: Calibration rows.
        advance: Receives the share of the work done.
    """
    passes = _passes(foldable.groups)
    for number, groups in enumerate(passes):
        hessians = _hessians(foldable, rows, groups)
        for position, group in enumerate(groups):
            _round_group(group, hessians.pop(group.name))
            advance((number + (position + 1) / len(groups)) / len(passes))


def _passes(groups: Sequence[LinearGroup]) -> list[list[LinearGroup]]:
    """Return the groups whose Hessians are held at a time, for each pass over the rows."""
    passes: list[list[LinearGroup]] = [[]]
    size = 0
    for group in groups:
        needed = 4 * group.projections[0].weight.shape[1] ** 2
        if passes[-1] and size + needed > _HESSIAN_BYTES:
            passes.append([])
            size = 0
        passes[-1].append(group)
        size += needed
    return passes


def _hessians(
    foldable: FoldableModel, rows: Sequence[CalibrationRow], groups: Sequence[LinearGroup]
) -> dict[str, Tensor]:
    """Return the Hessian sum x xᵀ over all tokens, [channels, channels], by name of the group."""
    found: dict[str, Tensor] = {}

    def observe(group: LinearGroup, activation: Tensor) -> None:
        hessian = activation.T @ activation
        found[group.name] = found[group.name].add_(hessian) if group.name in found else hessian

    observe_activations(foldable, rows, groups, observe)
    return found


@torch.no_grad()
def _round_group(group: LinearGroup, hessian: Tensor) -> None:
    """Round the projections of a group together: they share the Hessian."""
    order = torch.diag(hessian).argsort(descending=True)
    factor = _inverse_cholesky(hessian, order)
    for parts in _parts(group):
        weights = torch.cat(parts)
        scale = row_scale(weights)
        integers = torch.empty_like(weights)
        integers[:, order] = _round_columns(weights[:, order], scale[:, 0], factor)
        largest = weights.abs().argmax(dim=1, keepdim=True)
        integers.scatter_(1, largest, LARGEST * weights.gather(1, largest).sign())
        values = integers.div_(scale)
        start = 0
        for part in parts:
            part.copy_(values[start : start + len(part)])
            start += len(part)


def _parts(group: LinearGroup) -> Iterator[list[Tensor]]:
    """Yield views of the output channels of a group, as many at a time as _PART_BYTES hold.

    Each output channel is rounded independently.
    """
    most = max(1, _PART_BYTES // (4 * group.projections[0].weight.shape[1]))
    parts: list[Tensor] = []
    for projection in group.projections:
        for start in range(0, len(projection.weight), most):
            part = projection.weight[start : start + most]
            if parts and sum(map(len, parts)) + len(part) > most:
                yield parts
                parts = []
            parts.append(part)
    yield parts


def _inverse_cholesky(hessian: Tensor, order: Tensor) -> Tensor:
    """Return the upper triangular U with Uᵀ U = (H + damping)^-1 in float32.

    Channels that are always zero get the damping alone. Two float64 matrices are held at a time:
    for wide models they are the largest of all.

    Args:
        hessian: H, [channels, channels].
        order: Order in which H's channels are rounded.
    """
    damped = hessian[order][:, order].double()
    damped.diagonal().add_(_DAMPING * torch.diag(damped).mean() + 1e-12)
    triangle = torch.linalg.cholesky(damped)
    del damped
    inverse = torch.cholesky_inverse(triangle)
    del triangle
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()


def _round_columns(weights: Tensor, scale: Tensor, factor: Tensor) -> Tensor:
    """Return integers (as floats) for `weights`.

    Blocks of columns are finished before their error is passed on to the rest, which is the same
    sum in fewer products (lazy batch updates).

    Args:
        weights: [out, in], columns in the order in which they are rounded.
        scale: Integer steps per unit of each row, [out].
        factor: Result of `_inverse_cholesky`.
    """
    left = weights.T.contiguous()
    integers = torch.empty_like(left)
    for start in range(0, len(left), _BLOCK):
        stop = min(start + _BLOCK, len(left))
        errors = torch.empty_like(left[start:stop])
        for column in range(start, stop):
            row = factor[column]
            integers[column] = torch.round(left[column] * scale).clamp_(-LARGEST, LARGEST)
            error = (left[column] - integers[column] / scale) / row[column]
            left[column + 1 : stop].addr_(row[column + 1 : stop], error, alpha=-1)
            errors[column - start] = error
        left[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return integers.T
