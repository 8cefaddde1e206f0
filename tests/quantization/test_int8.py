"""The simulation of int8 against CTranslate2's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foldable_models import logits, random_model, random_rows

import tiny_models
from packhorse.engines.common.log_probs import log_softmax
from packhorse.models import prepare
from packhorse.models.checkpoint import open_checkpoint
from packhorse.models.loading import load_float32
from packhorse.quantization.foldable_model import make_foldable
from packhorse.quantization.int8 import fake_quantize, row_scale, simulate_int8
from scorers import ctranslate2_scorer

PROMPTS = [tuple(range(5, 40, 3)), (7, 9, 250, 31, 8, 120), tuple(range(299, 200, -7))]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.0, 0.0], [0, 0]),
        ([127.0, -63.6, 0.5, 1.5], [127, -64, 0, 2]),
        ([-2.0, 1.0, 0.007, 0.008], [-127, 64, 0, 1]),
    ],
)
def test_integers_of_a_row(row: list[float], expected: list[int]) -> None:
    """Rounding is to nearest, ties to even; the largest magnitude becomes 127."""
    values = torch.tensor(row)
    assert torch.round(values * row_scale(values)).tolist() == expected
    torch.testing.assert_close(fake_quantize(values), torch.tensor(expected) / row_scale(values))


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_models.tiny_llama, tiny_models.tiny_gpt2])
def test_simulated_and_real_int8_say_the_same(make: Any, tmp_path: Path, home: Path) -> None:
    folder = make(tmp_path / "model")
    converted = prepare(
        str(folder), engine="ctranslate2", quantization="int8", quantization_method="plain"
    )
    real = ctranslate2_scorer(converted.folder, "int8")
    model = load_float32(open_checkpoint(folder))
    exact, simulated = [_logs(model, ids) for ids in PROMPTS], []
    with simulate_int8(make_foldable(model)):
        simulated = [_logs(model, ids) for ids in PROMPTS]
    for ids, without, ours in zip(PROMPTS, exact, simulated, strict=True):
        theirs = real.log_probs(ids[:1], ids[1:])
        off, changed = np.abs(ours - theirs).mean(), np.abs(without - theirs).mean()
        assert changed > 0.004, "int8 must make a difference to be told from float32"
        assert off < 0.15 * changed


def _logs(model: Any, ids: tuple[int, ...]) -> Any:
    with torch.no_grad():
        return log_softmax(model(torch.tensor([ids[:-1]])).logits[0].numpy())


def test_the_model_is_as_it_was_afterwards() -> None:
    model, rows = random_model("qwen3"), random_rows(2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = logits(model, rows)

    def interrupted() -> None:
        with simulate_int8(make_foldable(model)):
            assert not torch.equal(logits(model, rows)[0], before[0])
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        interrupted()
    assert torch.equal(logits(model, rows)[0], before[0])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
