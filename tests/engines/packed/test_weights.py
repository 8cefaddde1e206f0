"""Weights in the layout of the matrix multiplications."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from packhorse.engines.packed import PackedEngine, read_architecture
from packhorse.engines.packed.checkpoint_tensors import RotatedTensors
from packhorse.engines.packed.int8_writer import write_int8
from packhorse.engines.packed.weights import LOW_DIGIT_STEPS, load_weights
from packhorse.errors import EngineError
from packhorse.quantization.foldable_model import make_foldable
from packhorse.quantization.gptq import round_weights
from packhorse.quantization.online_hadamard import rotate_inputs_online
from packhorse.quantization.recipe import CalibrationRow
from random_models import FAMILIES, saved


def test_two_digits_are_finer_than_one_and_their_product_is_exact(tmp_path: Path) -> None:
    saved(FAMILIES["qwen3"], tmp_path)
    built = read_architecture(tmp_path)
    linear = load_weights(tmp_path, built, quantized=True).layers[1].qkv
    assert linear.low_digit is not None
    whole = linear.weight.int() * LOW_DIGIT_STEPS + linear.low_digit.int()
    width = built.heads * built.head_size
    queries = RotatedTensors(tmp_path, built).projection(1, "query")[0].t()
    scales = torch.from_numpy(linear.scales)[:width]
    assert ((whole[:, :width] * scales - queries).abs() <= 0.51 * scales).all()
    rows = torch.randint(-127, 128, (20, built.hidden), dtype=torch.int8)
    product = torch.empty(20, linear.weight.shape[1], dtype=torch.int32)
    linear.multiply(rows, product, torch.empty_like(product))
    assert torch.equal(product, (rows.double() @ whole.double()).int())


def test_a_product_of_one_digit_is_within_half_a_step(tmp_path: Path) -> None:
    saved(FAMILIES["llama"], tmp_path)
    built = read_architecture(tmp_path)
    linear = load_weights(tmp_path, built, quantized=True).layers[0].up
    gate = RotatedTensors(tmp_path, built).projection(0, "gate")[0]
    scales = torch.from_numpy(linear.scales)[: built.inner]
    assert linear.low_digit is None
    rounded = linear.weight[:, : built.inner] * scales
    assert ((rounded - gate.t()).abs() <= 0.51 * scales).all()


def prepared_model(name: str, folder: Path) -> Any:
    """Save a prepared int8 folder and return the model with its weights as floats."""
    model = saved(FAMILIES[name], folder)
    foldable = make_foldable(model)
    rotate_inputs_online(foldable)
    rows = [CalibrationRow(tuple(range(start, start + 40, 2))) for start in (1, 30, 90)]
    round_weights(foldable, rows)
    write_int8(folder, folder, dict(model.named_parameters()))
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_prepared_int8_weights_are_used_unchanged(name: str, tmp_path: Path) -> None:
    model = prepared_model(name, tmp_path)
    engine = PackedEngine(tmp_path, end_ids=(), max_context=128, quantization="int8", threads=1)
    ids = tuple(range(3, 90, 2))
    found = engine.logits_after(ids, 20)
    engine.close()
    expected = model(torch.tensor([ids])).logits[0, -20:].numpy()
    assert float(np.abs(found - expected).mean()) < 0.02 * float(np.abs(expected).max())
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.998


def test_prepared_int8_weights_keep_every_value(tmp_path: Path) -> None:
    model = prepared_model("qwen3", tmp_path)
    built = read_architecture(tmp_path)
    layer = load_weights(tmp_path, built, quantized=True).layers[1]
    assert layer.qkv.low_digit is None
    attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
    for linear, weight in (
        (layer.out, attention.o_proj.weight),
        (layer.down, mlp.down_proj.weight),
    ):
        scales = torch.from_numpy(linear.scales)[: linear.outputs]
        assert linear.weight.dtype == torch.int8
        assert torch.allclose(linear.weight * scales, weight.t(), rtol=1e-5, atol=1e-7)


def test_prepared_int8_weights_do_not_run_in_float32(tmp_path: Path) -> None:
    prepared_model("llama", tmp_path)
    with pytest.raises(EngineError, match="holds int8 weights") as refused:
        PackedEngine(tmp_path, end_ids=(), max_context=128)
    assert refused.value.hint == "add --quantization int8"
