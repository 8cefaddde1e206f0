"""The search, and its prediction of divergence."""

from __future__ import annotations

import weakref
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from foldable_models import FAMILIES, logits, random_model, random_rows

from packhorse.quantization.divergence import (
    compute_reference,
    measure_divergence,
    measure_int8_divergence,
)
from packhorse.quantization.foldable_model import make_foldable
from packhorse.quantization.folding import fold
from packhorse.quantization.int8 import fake_quantize, simulate_int8
from packhorse.quantization.recipe import Recipe
from packhorse.quantization.search import ALPHAS, search
from packhorse.quantization.sensitivity import predicted_divergence

ROWS, HELD_OUT = random_rows(24, seed=1), random_rows(12, seed=2)


def with_outliers(family: str) -> Any:
    """A model with an outlier channel in the residual stream and in its MLP."""
    model = random_model(family)
    if family == "gpt2":
        model.transformer.h[1].ln_2.weight[7] *= 60
        model.transformer.h[1].mlp.c_fc.weight[7] /= 60
        return model
    layer = model.model.layers[1]
    layer.post_attention_layernorm.weight[7] *= 60
    layer.mlp.gate_proj.weight[:, 7] /= 60
    layer.mlp.up_proj.weight[:, 7] /= 60
    layer.mlp.up_proj.weight[11] *= 40
    layer.mlp.down_proj.weight[:, 11] /= 40
    return model


def kl(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """Mean over all positions, nats."""
    total = [
        (p.exp() * (p - q)).sum(-1)
        for p, q in (
            (a.log_softmax(-1), b.log_softmax(-1)) for a, b in zip(before, after, strict=True)
        )
    ]
    return float(torch.cat(total).mean())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_the_cost_of_rounding_one_group_is_predicted(family: str) -> None:
    """Compared with the divergence measured with that one group rounded."""
    model = random_model(family)
    foldable = make_foldable(model)
    foldable.embedding.weight.data.copy_(fake_quantize(foldable.embedding.weight.data))
    rows = random_rows(60, answers=False)
    before = logits(model, rows)
    groups = [group for group in foldable.scalable_groups() if group.layer == 1]
    ones = {
        group.name: [torch.ones(len(group.producers[0])), torch.ones(len(group.producers[0]))]
        for group in groups
    }
    predicted = predicted_divergence(foldable, rows, ones)
    for group in groups:
        with simulate_int8(replace(foldable, groups=(group,))):
            measured = kl(before, logits(model, rows))
        first, second = predicted[group.name]
        assert first == pytest.approx(second)
        assert first == pytest.approx(measured, rel=0.5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_methods_reduce_the_divergence_of_outliers(family: str) -> None:
    model = with_outliers(family)
    found = search(model, FAMILIES[family], ROWS, HELD_OUT)
    assert {trial.recipe.method for trial in found.trials} == {"plain", *FAMILIES[family]}
    divergences = [trial.divergence.kl for trial in found.trials]
    assert divergences == sorted(divergences)
    (plain,) = (t for t in found.trials if t.recipe.method == "plain")
    assert found.best.divergence.kl < 0.5 * plain.divergence.kl
    assert found.best.divergence.top1 >= plain.divergence.top1
    assert set(found.best.recipe.alphas.values()) <= set(ALPHAS)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("seed", range(4))
def test_never_worse_than_plain_by_its_own_measure(family: str, seed: int) -> None:
    found = search(random_model(family, seed=seed), ("smooth",), ROWS[:6], HELD_OUT)
    plain = next(t for t in found.trials if t.recipe.method == "plain")
    assert found.best.divergence.kl <= plain.divergence.kl


def test_the_recipe_gives_again_what_the_search_measured() -> None:
    model = with_outliers("llama")
    before = logits(model, HELD_OUT)
    best = search(model, ("rotate-smooth",), ROWS, HELD_OUT).best
    assert torch.equal(logits(model, HELD_OUT)[0], before[0]), "the model itself is left alone"
    foldable = make_foldable(model)
    expected = compute_reference(foldable, HELD_OUT)
    fold(foldable, Recipe.from_json(best.recipe.to_json()))
    assert measure_divergence(foldable, expected).kl < 1e-6
    assert measure_int8_divergence(foldable, expected).kl == pytest.approx(
        best.divergence.kl, rel=0.02
    )


def test_progress_is_told_by_method() -> None:
    told: list[tuple[str, float]] = []
    search(random_model("llama"), ("smooth", "rotate"), ROWS, HELD_OUT, lambda *p: told.append(p))
    assert [share for name, share in told if name == "smooth"][-1] == 1.0
    assert [name for name, share in told if share == 1.0][-1] == "rotate"
    shares = [share for name, share in told if name == "smooth"]
    assert shares == sorted(shares)


def test_equal_recipes_have_equal_digests_and_others_others() -> None:
    recipe = Recipe("smooth", 0, {"0.qkv": 0.3}, tuple(ROWS[:2]))
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_json(recipe.to_json()).digest == recipe.digest
    for other in (
        replace(recipe, method="rotate-smooth"),
        replace(recipe, seed=1),
        replace(recipe, alphas={"0.qkv": 0.45}),
        replace(recipe, rows=tuple(ROWS[:3])),
    ):
        assert other.digest != recipe.digest


def test_no_more_models_are_held_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original, and one copy: the last is gone before the next is made."""
    copies, alive = weakref.WeakSet[Any](), list[int]()

    def counted(model: Any) -> Any:
        alive.append(len(copies))
        copies.add(copied := deepcopy(model))
        return copied

    model = random_model("llama")
    monkeypatch.setattr("packhorse.quantization.search.copy", SimpleNamespace(deepcopy=counted))
    search(model, FAMILIES["llama"], ROWS[:4], HELD_OUT[:3])
    assert alive == [0] * len(FAMILIES["llama"])
