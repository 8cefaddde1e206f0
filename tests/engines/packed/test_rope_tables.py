"""Rotary tables of the packed engine equal those of transformers, bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from packhorse.decoders import describe
from packhorse.decoders.rotations import rotation_tables
from random_models import LLAMA3, YARN

CONTEXT = 700


def _check(rope: dict[str, Any], head_size: int) -> None:
    """Compare the tables of a model with those of transformers' class."""
    config = LlamaConfig(
        hidden_size=2 * head_size, num_attention_heads=2, head_dim=head_size, rope_parameters=rope
    )
    padded = -(-head_size // 32) * 32
    found = rotation_tables(describe(config), CONTEXT, padded // 2)
    wanted = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(CONTEXT)[None])
    half = head_size // 2
    for table, expected in zip(found, wanted, strict=True):
        assert table.shape == (CONTEXT, padded // 2)
        assert table.flags.c_contiguous
        np.testing.assert_array_equal(table[:, :half], expected[0, :, :half].numpy())
        assert not table[:, half:].any()


@pytest.mark.parametrize("head_size", [8, 20, 64, 128])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 100},
        {"rope_type": "default", "rope_theta": 500000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        LLAMA3,
        YARN,
    ],
    ids=["default, whole theta", "default", "linear", "llama3", "yarn"],
)
def test_tables_equal_those_of_transformers(rope: dict[str, Any], head_size: int) -> None:
    _check(rope, head_size)


@settings(max_examples=30, deadline=None)
@given(
    theta=st.floats(2.0, 1e8),
    factor=st.floats(1.0, 64.0),
    kind=st.sampled_from(["default", "linear", "llama3"]),
    half=st.integers(1, 64),
)
def test_any_theta_and_factor(theta: float, factor: float, kind: str, half: int) -> None:
    rope = {**LLAMA3, "rope_type": kind, "rope_theta": theta, "factor": factor}
    if kind != "llama3":
        rope = {name: rope[name] for name in ("rope_type", "rope_theta", "factor")}
    _check(rope, 2 * half)
