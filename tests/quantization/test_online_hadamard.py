"""Online Hadamard rotation: the same product, and outliers are spread."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from foldable_models import FAMILIES, largest_change, logits, random_model, random_rows

from packhorse.engines.packed import vectors
from packhorse.quantization.activations import observe_activations
from packhorse.quantization.foldable_model import LinearGroup, make_foldable
from packhorse.quantization.online_hadamard import (
    LANES,
    fuse_inverse_hadamard,
    hadamard_order,
    hadamard_rotated,
    rotate_inputs_online,
)


def test_lanes_are_those_of_the_engine() -> None:
    assert LANES == vectors.LANES


@pytest.mark.parametrize(
    ("channels", "order"),
    [(16, 1), (88, 1), (96, 2), (512, 32), (1536, 32), (2048, 32), (8960, 16)],
)
def test_as_many_vectors_as_divide_the_channels(channels: int, order: int) -> None:
    assert hadamard_order(channels) == order
    rows = torch.randn(7, channels, generator=torch.Generator().manual_seed(channels))
    torch.testing.assert_close(
        hadamard_rotated(hadamard_rotated(rows)) / order, rows, rtol=1e-4, atol=1e-5
    )
    weight = torch.randn(5, channels, generator=torch.Generator().manual_seed(1))
    products = hadamard_rotated(rows) @ fuse_inverse_hadamard(weight).T
    torch.testing.assert_close(products, rows @ weight.T, rtol=1e-4, atol=1e-4)


def test_one_large_channel_is_spread_over_its_block() -> None:
    row = torch.zeros(1, 1024)
    row[0, 700] = 5.0
    block = hadamard_rotated(row)[0, 512:].view(32, LANES)
    assert torch.equal(block[:, 700 % LANES].abs(), torch.full((32,), 5.0))
    assert float(hadamard_rotated(row).abs().sum()) == 32 * 5.0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_computes_the_same_and_hooks_see_the_rotated_input(family: str) -> None:
    changes: dict[str, Any] = {} if family == "gpt2" else {"intermediate_size": 128}
    model, rows = random_model(family, **changes), random_rows(3)
    foldable = make_foldable(model)
    before = logits(model, rows)
    down = next(group for group in foldable.groups if group.kind == "down")
    seen: list[torch.Tensor] = []

    def observe(group: LinearGroup, activation: torch.Tensor) -> None:
        seen.append(activation)

    observe_activations(foldable, rows, [down], observe)
    rotate_inputs_online(foldable)
    observe_activations(foldable, rows, [down], observe)
    assert largest_change(before, logits(model, rows)) < 1e-5
    torch.testing.assert_close(seen[1], hadamard_rotated(seen[0]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(seen[1], seen[0])
