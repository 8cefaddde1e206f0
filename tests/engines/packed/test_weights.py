"""Weights as products take them."""

from __future__ import annotations

from pathlib import Path

import torch
from random_models import FAMILIES, saved

from packhorse.engines.packed import read_architecture
from packhorse.engines.packed.stored import Rotated
from packhorse.engines.packed.weights import FINER, load_weights


def test_two_digits_are_finer_than_one_and_their_product_is_exact(tmp_path: Path) -> None:
    saved(FAMILIES["qwen3"], tmp_path)
    built = read_architecture(tmp_path)
    linear = load_weights(tmp_path, built, quantized=True).layers[1].qkv
    assert linear.finer is not None
    whole = linear.weight.int() * FINER + linear.finer.int()
    width = built.heads * built.head_size
    queries = (
        Rotated(tmp_path, built).get("layers.1.self_attn.q_proj.weight", width, built.hidden).t()
    )
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
    gate = Rotated(tmp_path, built).get("layers.0.mlp.gate_proj.weight", built.inner, built.hidden)
    scales = torch.from_numpy(linear.scales)[: built.inner]
    assert linear.finer is None
    rounded = linear.weight[:, : built.inner] * scales
    assert ((rounded - gate.t()).abs() <= 0.51 * scales).all()


def test_memory_counts_shared_numbers_once(tmp_path: Path) -> None:
    saved(FAMILIES["llama, biases, own head size, tied"], tmp_path)
    built = read_architecture(tmp_path)
    weights = load_weights(tmp_path, built, quantized=False)
    layers = sum(
        part.weight.numel() for layer in weights.layers
        for part in (layer.qkv, layer.out, layer.up, layer.down)
    )  # fmt: skip
    assert weights.bytes() == 4 * (layers + built.vocabulary * built.hidden)
