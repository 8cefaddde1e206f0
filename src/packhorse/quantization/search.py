"""Which method, and how much smoothing at each site: the recipe that changes the model least.

Two measures. For each site and each alpha of a grid, what rounding there would cost is predicted
from gradients on calibration rows (`sensitivity`): one forward and one backward pass for all sites
and alphas. Then each method, with its best alphas, is computed in simulated int8 on rows that took
no part in choosing them (`divergence`); the method of least divergence wins. Plain int8 is measured
the same way, and wins where nothing is better.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from packhorse.quantization.divergence import Divergence, Reference, int8_divergence, reference
from packhorse.quantization.methods import PLAIN
from packhorse.quantization.recipe import QUICK_ALPHAS, CalibrationRow, Recipe
from packhorse.quantization.rotation import rotate
from packhorse.quantization.sensitivity import predicted_divergence
from packhorse.quantization.smoothing import activation_maxima, scales
from packhorse.quantization.structure import Site, Structure, structure_of

ALPHAS = (0.0, 0.15, 0.3, 0.45, 0.6)
_WEIGHED_ROWS = 32
"""Rows that alphas are chosen by, at most: some thousand tokens, each with its gradients."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A method with its best alphas; divergence of int8 from float32 on the held-out rows."""

    recipe: Recipe
    divergence: Divergence


@dataclass(frozen=True, slots=True)
class Found:
    """trials: the best first; `plain` is always among them."""

    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        return self.trials[0]


def search(
    model: Any,
    methods: Sequence[str],
    rows: Sequence[CalibrationRow],
    held_out: Sequence[CalibrationRow],
    advance: Callable[[str, float], None] = lambda what, share: None,
) -> Found:
    """The best recipe for a loaded float32 model, which stays as it is but for its head's own
    numbers (see `structure_of`).

    methods: to try beside `plain`. rows, held_out: for choosing, and for judging. advance: is told
    what is done, and which share of it is. Memory: three models (the original, the one that is
    tried, and what int8_arithmetic keeps of it), and the reference's distributions.
    """
    original = structure_of(model)
    expected = reference(original, held_out)
    plain = Recipe(PLAIN, 0, {}, ())
    trials = [Trial(plain, int8_divergence(original, expected))]
    for method in methods:
        structure = structure_of(copy.deepcopy(model))
        trials.append(_try_method(structure, method, rows, expected, partial(advance, method)))
        del structure  # before the next is copied
        advance(method, 1.0)
    return Found(tuple(sorted(trials, key=_kl)))


def _try_method(
    structure: Structure,
    method: str,
    rows: Sequence[CalibrationRow],
    expected: Reference,
    advance: Callable[[float], None],
) -> Trial:
    """Makes `structure` ready by a method, and measures it: with the same alphas in every layer,
    and with the best ones for each site, of which the better counts."""
    if method.startswith("rotate"):
        rotate(structure, 0)
    kinds = QUICK_ALPHAS[method]
    sites = [site for site in structure.scalable_sites() if site.kind in kinds]
    if not sites:
        return Trial(Recipe(method, 0, {}, tuple(rows)), int8_divergence(structure, expected))
    maxima = activation_maxima(structure, rows, sites)
    candidates = {s.name: [scales(s, maxima[s.name], alpha) for alpha in ALPHAS] for s in sites}
    predicted = predicted_divergence(structure, rows[:_WEIGHED_ROWS], candidates, advance=advance)
    trials = []
    for alphas in (
        {site.name: kinds[site.kind] for site in sites},
        {name: _best_alpha(costs) for name, costs in predicted.items()},
    ):
        chosen = {site.name: scales(site, maxima[site.name], alphas[site.name]) for site in sites}
        _scale(sites, chosen)
        recipe = Recipe(method, 0, alphas, tuple(rows))
        trials.append(Trial(recipe, int8_divergence(structure, expected)))
        _scale(sites, {name: 1 / values for name, values in chosen.items()})
    return min(trials, key=_kl)


def _scale(sites: Sequence[Site], values: Mapping[str, Tensor]) -> None:
    for site in sites:
        site.scale(values[site.name])


def _kl(trial: Trial) -> float:
    return trial.divergence.kl


def _best_alpha(costs: Sequence[float]) -> float:
    return ALPHAS[min(range(len(costs)), key=costs.__getitem__)]
