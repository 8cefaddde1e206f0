"""Folding changes the numbers of a model, and not what it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foldable_models import FAMILIES, largest_change, logits, random_model, random_rows

from packhorse.models.checkpoint import open_checkpoint
from packhorse.models.loading import load_float32
from packhorse.quantization.activations import observe_activations
from packhorse.quantization.foldable_model import LinearGroup, make_foldable
from packhorse.quantization.folding import default_recipe, fold
from packhorse.quantization.recipe import Recipe
from packhorse.quantization.rotation import rotate
from packhorse.quantization.smoothing import activation_maxima, smoothing_scales

ROWS = random_rows(6)
WAYS = [(family, method) for family, methods in FAMILIES.items() for method in methods]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"head_dim": 24}),
    ("llama", {"hidden_size": 52, "head_dim": 26}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ("mistral", {"sliding_window": 8}),
]


def all_alphas(model: Any, method: str, alpha: float) -> Recipe:
    """A recipe that smooths wherever it can."""
    groups = make_foldable(model).scalable_groups()
    return Recipe(method, 5, {group.name: alpha for group in groups}, tuple(ROWS))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("family", "method"), WAYS)
def test_a_folded_model_computes_the_same(family: str, method: str, tied: bool) -> None:
    model = random_model(family, tied=tied)
    before = logits(model, ROWS)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    fold(make_foldable(model), all_alphas(model, method, 0.5))
    assert largest_change(before, logits(model, ROWS)) < 1e-5
    changed = [n for n, value in model.state_dict().items() if not torch.equal(value, weights[n])]
    assert len(changed) > len(weights) / 3


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_so_do_their_variants(family: str, changes: dict[str, Any]) -> None:
    model = random_model(family, **changes)
    before = logits(model, ROWS)
    fold(make_foldable(model), all_alphas(model, "rotate-smooth", 0.4))
    assert largest_change(before, logits(model, ROWS)) < 1e-5


def test_the_demonstration_model_computes_the_same(demo_model_folder: Path) -> None:
    model = load_float32(open_checkpoint(demo_model_folder))
    before = logits(model, ROWS)
    foldable = make_foldable(model)
    fold(foldable, default_recipe(foldable, "rotate-smooth", [row.prompt for row in ROWS]))
    assert largest_change(before, logits(model, ROWS)) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_model_is_saved_and_loaded_as_it_is(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = random_model(family, tied=True)
    foldable = make_foldable(model)
    method = FAMILIES[family][-1]
    fold(foldable, default_recipe(foldable, method, [row.prompt for row in ROWS]))
    model.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.tie_word_embeddings is False
    assert largest_change(logits(model, ROWS), logits(loaded, ROWS)) == 0


def test_rotation_leaves_no_gain_and_spreads_an_outlier() -> None:
    model = random_model("llama", hidden_size=64)
    model.model.embed_tokens.weight[:, 3] *= 60
    foldable = make_foldable(model)
    peaks: dict[str, list[float]] = {"before": [], "after": []}

    def observe(when: str) -> Any:
        return lambda group, x: peaks[when].append(float((x.abs().amax(1) / x.std(1)).mean()))

    observe_activations(foldable, ROWS, [foldable.groups[0]], observe("before"))
    rotate(foldable, 0)
    observe_activations(foldable, ROWS, [foldable.groups[0]], observe("after"))
    assert all(torch.equal(gain, torch.ones_like(gain)) for gain, _ in foldable.norms)
    assert max(peaks["after"]) < 0.6 * min(peaks["before"])


def group_named(model: Any, name: str) -> LinearGroup:
    return next(group for group in make_foldable(model).groups if group.name == name)


@pytest.mark.parametrize("family", FAMILIES)
def test_smoothing_evens_out_what_it_divides(family: str) -> None:
    """alpha 1 makes all channels of an activation equally large, but for eighths of an octave."""
    model = random_model(family)
    foldable = make_foldable(model)
    for group in foldable.scalable_groups():
        if group.heads is not None:
            continue
        before = activation_maxima(foldable, ROWS, [group])[group.name]
        group.scale(smoothing_scales(group, before, 1.0))
        after = activation_maxima(foldable, ROWS, [group])[group.name]
        assert float(before.max() / before.min()) > 1.5
        assert float(after.max() / after.min()) < 2**0.13


def test_query_heads_that_share_values_share_their_scale() -> None:
    """Four query heads, two of values: channel maxima are taken over the two that share."""
    group = group_named(random_model("llama"), "1.o")
    maxima = torch.arange(48, dtype=torch.float32)
    folded = group.to_producer_channels(maxima)
    assert folded.tolist() == [*range(12, 24), *range(36, 48)]
    spread = group.to_input_channels(folded)
    assert spread.tolist() == [*range(12, 24)] * 2 + [*range(36, 48)] * 2


def test_the_input_of_gpt2s_second_projection_cannot_be_scaled() -> None:
    kinds = {group.kind for group in make_foldable(random_model("gpt2")).scalable_groups()}
    assert kinds == {"qkv", "o", "mlp", "head"}


def test_alpha_zero_changes_nothing() -> None:
    group = group_named(random_model("llama"), "0.down")
    assert torch.equal(smoothing_scales(group, torch.rand(88) * 50, 0.0), torch.ones(88))


def test_last_bits_of_an_activation_do_not_change_the_scales() -> None:
    group = group_named(random_model("llama"), "0.down")
    maxima = torch.rand(88, generator=torch.Generator().manual_seed(0)) * 50
    assert torch.equal(
        smoothing_scales(group, maxima, 0.5), smoothing_scales(group, maxima * (1 + 3e-7), 0.5)
    )
