"""A turned checkpoint computes what it computed before, with nothing left that stands out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from packhorse.engines.packed import read_architecture
from packhorse.engines.packed.stored import Rotated, Stored
from random_models import FAMILIES, saved

IDS = torch.arange(1, 60)[None]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gpt2"])
def test_a_turned_model_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    model = saved(FAMILIES[name], tmp_path)
    expected = model(IDS).logits
    turned, built = Rotated(tmp_path, read_architecture(tmp_path)), read_architecture(tmp_path)
    head = turned.head(built, turned.read("embed_tokens.weight", built.vocabulary, built.hidden))
    for full, parameter in model.named_parameters():
        bare = full.removeprefix("model.")
        if bare != "lm_head.weight":
            parameter.copy_(turned.get(bare, *parameter.shape))
    model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    changed = (model(IDS).logits - expected).abs().max() / expected.abs().max()
    assert 0 < changed < 1e-4


def test_a_channel_that_stands_out_is_spread(tmp_path: Path) -> None:
    model = saved(FAMILIES["llama"], tmp_path)
    model.model.embed_tokens.weight[:, 5] *= 100
    model.save_pretrained(tmp_path)
    built = read_architecture(tmp_path)
    shape = built.vocabulary, built.hidden
    before = Stored(tmp_path).get("embed_tokens.weight", *shape).abs().amax(0)
    after = Rotated(tmp_path, built).get("embed_tokens.weight", *shape).abs().amax(0)
    assert before.max() / before.median() > 50
    assert after.max() / after.median() < 2
