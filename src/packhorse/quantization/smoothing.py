"""Activation smoothing: SmoothQuant (Xiao et al. 2022, arXiv 2211.10438), equation 4.

Channel j of an activation x is divided by

    s_j = max |x_j|^alpha / max |w_j|^(1 - alpha)

and column j of the weights w that read it is multiplied by s_j: outliers move from the activation,
which is rounded with one scale per row, into the weights. alpha 0 means no smoothing (in the
equation it would make all columns of w equally large).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from packhorse.quantization.activations import observe_activations
from packhorse.quantization.foldable_model import FoldableModel, LinearGroup
from packhorse.quantization.recipe import CalibrationRow

_SMALLEST = 1e-5
_STEPS = 8


def activation_maxima(
    foldable: FoldableModel,
    rows: Sequence[CalibrationRow],
    groups: Sequence[LinearGroup],
    advance: Callable[[float], None] = lambda share: None,
) -> dict[str, Tensor]:
    """Return the largest magnitude of each input channel over all tokens, by name of the group.

    `advance` receives the share of the rows done.
    """
    found: dict[str, Tensor] = {}

    def observe(group: LinearGroup, activation: Tensor) -> None:
        largest = activation.abs().amax(0)
        before = found.get(group.name)
        found[group.name] = largest if before is None else torch.maximum(before, largest)

    observe_activations(foldable, rows, groups, observe, advance)
    return found


def smoothing_scales(group: LinearGroup, maxima: Tensor, alpha: float) -> Tensor:
    """Return s of the equation above for the producers' channels of a linear group.

    Scales are rounded to eighths of an octave: activations that differ in their last bits, as they
    do between machines and numbers of threads, give the same model.

    Args:
        group: The linear group.
        maxima: Its result of `activation_maxima`, [input channels].
        alpha: Smoothing strength, 0 to 1.
    """
    columns = torch.stack(
        [projection.weight.abs().amax(0) for projection in group.projections]
    ).amax(0)
    ours = group.to_producer_channels(maxima).clamp(min=_SMALLEST)
    theirs = group.to_producer_channels(columns).clamp(min=_SMALLEST)
    if alpha == 0:
        return torch.ones_like(ours)
    octaves = alpha * torch.log2(ours) - (1 - alpha) * torch.log2(theirs)
    return torch.exp2(torch.round(octaves * _STEPS) / _STEPS)


def smooth(
    foldable: FoldableModel, maxima: Mapping[str, Tensor], alphas: Mapping[str, float]
) -> None:
    """Smooth every group named in `alphas`; the model computes the same as before."""
    for group in foldable.scalable_groups():
        alpha = alphas.get(group.name, 0.0)
        if alpha:
            group.scale(smoothing_scales(group, maxima[group.name], alpha))
