"""Weights rounded to int8 so that the *outputs* stay close: GPTQ (Frantar et al. 2022,
arXiv 2210.17323, algorithm 1).

Rounding to nearest minimises the error of each weight; what counts is the error of w x for the x
that occur. Column by column a weight is rounded, and what that costs is made up for by the
columns not rounded yet, through the inverse of H = sum x xᵀ over calibration tokens. The scale of
each output channel is CTranslate2's, 127 over its largest magnitude, and every channel keeps one
weight of magnitude 127: so converting the model, which rounds to nearest, changes nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from packhorse.quantization.int8 import LARGEST, row_scale
from packhorse.quantization.recipe import CalibrationRow
from packhorse.quantization.rows import watch_activations
from packhorse.quantization.structure import Site, Structure

_BLOCK = 64
_DAMPING = 0.01
_STATISTICS_BYTES = 1_500_000_000
_PART_BYTES = 128_000_000
"""Of weights that are rounded at a time; five copies of them are held."""


def working_bytes(channels: int) -> int:
    """What `round_weights` takes beside the model, at most, where the widest site has so many
    channels (bytes): statistics, their inverse in float64, and the weights it works at."""
    statistics = max(_STATISTICS_BYTES, 4 * channels**2)
    return statistics + 24 * channels**2 + 5 * max(_PART_BYTES, 4 * channels)


def round_weights(
    structure: Structure,
    rows: Sequence[CalibrationRow],
    advance: Callable[[float], None] = lambda share: None,
) -> None:
    """Rounds the weights of all sites in place; the model then computes what its int8 weights do.

    Memory: statistics of as many sites at a time as fit into 1.5 GB, and for these one pass over
    the rows. advance: is told the share of the work that is done.
    """
    groups = _groups(structure.sites)
    for number, sites in enumerate(groups):
        statistics = _second_moments(structure, rows, sites)
        for position, site in enumerate(sites):
            _round_site(site, statistics.pop(site.name))
            advance((number + (position + 1) / len(sites)) / len(groups))


def _groups(sites: Sequence[Site]) -> list[list[Site]]:
    groups: list[list[Site]] = [[]]
    size = 0
    for site in sites:
        needed = 4 * site.readers[0].weight.shape[1] ** 2
        if groups[-1] and size + needed > _STATISTICS_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(site)
        size += needed
    return groups


def _second_moments(
    structure: Structure, rows: Sequence[CalibrationRow], sites: Sequence[Site]
) -> dict[str, Tensor]:
    """Site name -> sum of x xᵀ over all tokens, (channels, channels)."""
    found: dict[str, Tensor] = {}

    def look(site: Site, activation: Tensor) -> None:
        moments = activation.T @ activation
        found[site.name] = found[site.name].add_(moments) if site.name in found else moments

    watch_activations(structure, rows, sites, look)
    return found


@torch.no_grad()
def _round_site(site: Site, moments: Tensor) -> None:
    """Rounds what reads a site, its projections together: they share the statistics."""
    order = torch.diag(moments).argsort(descending=True)
    factor = _inverse_factor(moments, order)
    for parts in _parts(site):
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


def _parts(site: Site) -> Iterator[list[Tensor]]:
    """Views of all output channels of the site's readers, as many at a time as _PART_BYTES hold:
    each is rounded by itself."""
    most = max(1, _PART_BYTES // (4 * site.readers[0].weight.shape[1]))
    parts: list[Tensor] = []
    for reader in site.readers:
        for start in range(0, len(reader.weight), most):
            part = reader.weight[start : start + most]
            if parts and sum(map(len, parts)) + len(part) > most:
                yield parts
                parts = []
            parts.append(part)
    yield parts


def _inverse_factor(moments: Tensor, order: Tensor) -> Tensor:
    """Upper triangular U with Uᵀ U = (H + damping)^-1, float32, for H's channels in an order;
    channels that are always zero get the damping alone.

    Two float64 matrices are held at a time: for wide models they are the largest of all.
    """
    damped = moments[order][:, order].double()
    damped.diagonal().add_(_DAMPING * torch.diag(damped).mean() + 1e-12)
    triangle = torch.linalg.cholesky(damped)
    del damped
    inverse = torch.cholesky_inverse(triangle)
    del triangle
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()


def _round_columns(weights: Tensor, scale: Tensor, factor: Tensor) -> Tensor:
    """Integers (as floats) for `weights` (out, in), columns in the order they are rounded.

    scale: integers a unit of each row. factor: see `_inverse_factor`. Blocks of columns are
    finished before their error is passed on to the rest, which is the same sum in fewer products.
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
