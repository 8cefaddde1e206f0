"""A recipe applied to a model: what it computes stays the same, what int8 makes of it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from packhorse.quantization.recipe import QUICK_ALPHAS, CalibrationRow, Recipe
from packhorse.quantization.rotation import rotate
from packhorse.quantization.smoothing import activation_maxima, smooth
from packhorse.quantization.structure import Structure


def quick_recipe(structure: Structure, method: str, prompts: Sequence[Sequence[int]]) -> Recipe:
    """The recipe of a method by name, with the same smoothing in every layer."""
    alphas = QUICK_ALPHAS[method]
    rows = tuple(CalibrationRow(tuple(ids)) for ids in prompts)
    chosen = {s.name: alphas[s.kind] for s in structure.scalable_sites() if s.kind in alphas}
    return Recipe(method, 0, chosen, rows)


def fold(
    structure: Structure,
    recipe: Recipe,
    advance: Callable[[float], None] = lambda share: None,
) -> None:
    """Rotates and smooths; the model computes the same as before, up to rounding of floats."""
    if recipe.method.startswith("rotate"):
        rotate(structure, recipe.seed)
    smoothed = [site for site in structure.scalable_sites() if recipe.alphas.get(site.name)]
    if smoothed:
        maxima = activation_maxima(structure, recipe.rows, smoothed, advance)
        smooth(structure, maxima, recipe.alphas)
