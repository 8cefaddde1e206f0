"""Search for the method and the smoothing strengths with the smallest divergence in int8.

First, for each linear group and each alpha of a grid, the cost of rounding is predicted from
gradients on calibration rows (`sensitivity`): one forward and one backward pass for all groups and
alphas. Then each method with its best alphas is run in simulated int8 on held-out rows
(`divergence`), and the method with the smallest divergence wins. Plain int8 is measured in the same
way, and wins if nothing is better.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from packhorse.quantization.divergence import (
    Divergence,
    Reference,
    compute_reference,
    measure_int8_divergence,
)
from packhorse.quantization.foldable_model import FoldableModel, LinearGroup, make_foldable
from packhorse.quantization.methods import PLAIN
from packhorse.quantization.recipe import DEFAULT_ALPHAS, CalibrationRow, Recipe
from packhorse.quantization.rotation import rotate
from packhorse.quantization.sensitivity import predicted_divergence
from packhorse.quantization.smoothing import activation_maxima, smoothing_scales

ALPHAS = (0.0, 0.15, 0.3, 0.45, 0.6)
_WEIGHED_ROWS = 32
"""Maximum number of rows for choosing alphas: some thousand tokens, each with its gradients."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A method with its best alphas, and its divergence from float32 on the held-out rows."""

    recipe: Recipe
    divergence: Divergence


@dataclass(frozen=True, slots=True)
class SearchResult:
    """All trials, the best one first; `plain` is always among them."""

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
) -> SearchResult:
    """Find the best recipe for a loaded float32 model.

    The model stays as it is, except that its head is untied (see `make_foldable`). Memory: three
    models (the original, the copy that is changed, and the weights that `simulate_int8` keeps), and
    the reference distributions.

    Args:
        model: A transformers model in float32.
        methods: Methods to try beside `plain`.
        rows: Calibration rows for choosing alphas.
        held_out: Rows for measuring divergence.
        advance: Receives the method and the share of its work done.
    """
    original = make_foldable(model)
    expected = compute_reference(original, held_out)
    plain = Recipe(PLAIN, 0, {}, ())
    trials = [Trial(plain, measure_int8_divergence(original, expected))]
    for method in methods:
        foldable = make_foldable(copy.deepcopy(model))
        trials.append(_try_method(foldable, method, rows, expected, partial(advance, method)))
        del foldable  # before the next is copied
        advance(method, 1.0)
    return SearchResult(tuple(sorted(trials, key=_kl)))


def _try_method(
    foldable: FoldableModel,
    method: str,
    rows: Sequence[CalibrationRow],
    expected: Reference,
    advance: Callable[[float], None],
) -> Trial:
    """Measure a method with the same alphas in every layer and with the best alpha per group, and
    return the better trial."""
    if method.startswith("rotate"):
        rotate(foldable, 0)
    kinds = DEFAULT_ALPHAS[method]
    groups = [group for group in foldable.scalable_groups() if group.kind in kinds]
    if not groups:
        return Trial(
            Recipe(method, 0, {}, tuple(rows)), measure_int8_divergence(foldable, expected)
        )
    maxima = activation_maxima(foldable, rows, groups)
    candidates = {
        s.name: [smoothing_scales(s, maxima[s.name], alpha) for alpha in ALPHAS] for s in groups
    }
    predicted = predicted_divergence(foldable, rows[:_WEIGHED_ROWS], candidates, advance=advance)
    trials = []
    for alphas in (
        {group.name: kinds[group.kind] for group in groups},
        {name: _best_alpha(costs) for name, costs in predicted.items()},
    ):
        chosen = {
            group.name: smoothing_scales(group, maxima[group.name], alphas[group.name])
            for group in groups
        }
        _apply_scales(groups, chosen)
        recipe = Recipe(method, 0, alphas, tuple(rows))
        trials.append(Trial(recipe, measure_int8_divergence(foldable, expected)))
        _apply_scales(groups, {name: 1 / values for name, values in chosen.items()})
    return min(trials, key=_kl)


def _apply_scales(groups: Sequence[LinearGroup], values: Mapping[str, Tensor]) -> None:
    for group in groups:
        group.scale(values[group.name])


def _kl(trial: Trial) -> float:
    return trial.divergence.kl


def _best_alpha(costs: Sequence[float]) -> float:
    return ALPHAS[min(range(len(costs)), key=costs.__getitem__)]
