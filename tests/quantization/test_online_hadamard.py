"""Turned inputs and turned weights: the same product, and what stood out is spread."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from foldable_models import largest_change, logits, random_model, random_rows

from packhorse.engines.packed import vectors
from packhorse.quantization.methods import FAMILIES
from packhorse.quantization.online_hadamard import (
    LANES,
    rotate_inputs_online,
    turned,
    turned_back,
    turned_together,
)
from packhorse.quantization.rows import watch_activations
from packhorse.quantization.structure import Site, structure_of


def test_it_turns_the_vectors_of_the_engine() -> None:
    assert LANES == vectors.LANES


@pytest.mark.parametrize(
    ("channels", "order"),
    [(16, 1), (88, 1), (96, 2), (512, 32), (1536, 32), (2048, 32), (8960, 16)],
)
def test_as_many_vectors_as_divide_the_channels(channels: int, order: int) -> None:
    assert turned_together(channels) == order
    rows = torch.randn(7, channels, generator=torch.Generator().manual_seed(channels))
    torch.testing.assert_close(turned(turned(rows)) / order, rows, rtol=1e-4, atol=1e-5)
    weight = torch.randn(5, channels, generator=torch.Generator().manual_seed(1))
    products = turned(rows) @ turned_back(weight).T
    torch.testing.assert_close(products, rows @ weight.T, rtol=1e-4, atol=1e-4)


def test_one_large_channel_is_spread_over_its_block() -> None:
    row = torch.zeros(1, 1024)
    row[0, 700] = 5.0
    block = turned(row)[0, 512:].view(32, LANES)
    assert torch.equal(block[:, 700 % LANES].abs(), torch.full((32,), 5.0))
    assert float(turned(row).abs().sum()) == 32 * 5.0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_computes_the_same_and_watchers_see_the_turned_input(family: str) -> None:
    changes: dict[str, Any] = {} if family == "gpt2" else {"intermediate_size": 128}
    model, rows = random_model(family, **changes), random_rows(3)
    structure = structure_of(model)
    before = logits(model, rows)
    down = next(site for site in structure.sites if site.kind == "down")
    seen: list[torch.Tensor] = []

    def look(site: Site, activation: torch.Tensor) -> None:
        seen.append(activation)

    watch_activations(structure, rows, [down], look)
    rotate_inputs_online(structure)
    watch_activations(structure, rows, [down], look)
    assert largest_change(before, logits(model, rows)) < 1e-5
    torch.testing.assert_close(seen[1], turned(seen[0]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(seen[1], seen[0])
