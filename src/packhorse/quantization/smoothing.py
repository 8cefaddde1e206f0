"""Activation smoothing: SmoothQuant (Xiao et al. 2022, arXiv 2211.10438), equation 4.

Channel j of an activation x is divided by

    s_j = max |x_j|^alpha / max |w_j|^(1 - alpha)

and column j of the weights w that read it multiplied by s_j: outliers move from the activation,
which is rounded with one scale a row, into the weights. alpha 0 leaves the site alone (here; in
the equation it would make all columns alike).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from packhorse.quantization.recipe import CalibrationRow
from packhorse.quantization.rows import watch_activations
from packhorse.quantization.structure import Site, Structure

_SMALLEST = 1e-5
_STEPS = 8


def activation_maxima(
    structure: Structure,
    rows: Sequence[CalibrationRow],
    sites: Sequence[Site],
    advance: Callable[[float], None] = lambda share: None,
) -> dict[str, Tensor]:
    """Site name -> largest magnitude of each channel of its activation over all tokens.

    advance: is told the share of the rows that are done.
    """
    found: dict[str, Tensor] = {}

    def look(site: Site, activation: Tensor) -> None:
        largest = activation.abs().amax(0)
        before = found.get(site.name)
        found[site.name] = largest if before is None else torch.maximum(before, largest)

    watch_activations(structure, rows, sites, look, advance)
    return found


def scales(site: Site, maxima: Tensor, alpha: float) -> Tensor:
    """s of the equation above for the makers' channels; `maxima` as `activation_maxima` gives them.

    Rounded to eighths of an octave: activations that differ in their last bits, as they do between
    machines and numbers of threads, give the same model.
    """
    columns = torch.stack([reader.weight.abs().amax(0) for reader in site.readers]).amax(0)
    ours = site.to_makers(maxima).clamp(min=_SMALLEST)
    theirs = site.to_makers(columns).clamp(min=_SMALLEST)
    if alpha == 0:
        return torch.ones_like(ours)
    octaves = alpha * torch.log2(ours) - (1 - alpha) * torch.log2(theirs)
    return torch.exp2(torch.round(octaves * _STEPS) / _STEPS)


def smooth(structure: Structure, maxima: Mapping[str, Tensor], alphas: Mapping[str, float]) -> None:
    """Scales every site named in `alphas`; the model computes the same as before."""
    for site in structure.scalable_sites():
        alpha = alphas.get(site.name, 0.0)
        if alpha:
            site.scale(scales(site, maxima[site.name], alpha))
