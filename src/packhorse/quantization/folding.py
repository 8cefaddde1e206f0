"""Apply a recipe to a model: float32 results stay the same, int8 results come closer to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from packhorse.quantization.foldable_model import FoldableModel
from packhorse.quantization.recipe import DEFAULT_ALPHAS, CalibrationRow, Recipe
from packhorse.quantization.rotation import rotate
from packhorse.quantization.smoothing import activation_maxima, smooth


def default_recipe(
    foldable: FoldableModel, method: str, prompts: Sequence[Sequence[int]]
) -> Recipe:
    """Return the recipe of a method with the same smoothing strength in every layer."""
    alphas = DEFAULT_ALPHAS[method]
    rows = tuple(CalibrationRow(tuple(ids)) for ids in prompts)
    chosen = {s.name: alphas[s.kind] for s in foldable.scalable_groups() if s.kind in alphas}
    return Recipe(method, 0, chosen, rows)


def fold(
    foldable: FoldableModel,
    recipe: Recipe,
    advance: Callable[[float], None] = lambda share: None,
) -> None:
    """Rotate and smooth a model; its results stay the same up to float rounding."""
    if recipe.method.startswith("rotate"):
        rotate(foldable, recipe.seed)
    smoothed = [group for group in foldable.scalable_groups() if recipe.alphas.get(group.name)]
    if smoothed:
        maxima = activation_maxima(foldable, recipe.rows, smoothed, advance)
        smooth(foldable, maxima, recipe.alphas)
