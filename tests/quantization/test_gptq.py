"""GPTQ: weights are on CTranslate2's int8 grid, and outputs are closer to the model's."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from foldable_models import FAMILIES, random_model, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from packhorse.quantization import gptq
from packhorse.quantization.foldable_model import LinearGroup, Projection, make_foldable
from packhorse.quantization.int8 import fake_quantize, row_scale


def as_converted(weight: Tensor) -> Tensor:
    """What CTranslate2's converter makes of a weight, in its own arithmetic."""
    value = weight.numpy().copy()
    scale = 127.0 / np.abs(value).max(axis=1)
    return torch.from_numpy(np.rint(value * scale[:, None]).astype(np.int8))


def group_of(weight: Tensor) -> LinearGroup:
    return LinearGroup(0, "mlp", (), (Projection(torch.nn.Identity(), weight, None),))


def correlated(tokens: int, channels: int, seed: int) -> Tensor:
    """Activations that mostly lie in a few directions, as real ones do."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels // 4, channels, generator=draw)
    common = torch.randn(tokens, channels // 4, generator=draw) @ mixing
    return common + 0.1 * torch.randn(tokens, channels, generator=draw)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_on_the_grid_that_conversion_finds(family: str) -> None:
    model = random_model(family)
    foldable = make_foldable(model)
    gptq.round_weights(foldable, random_rows(8))
    for group in foldable.groups:
        for projection in group.projections:
            integers = as_converted(projection.weight)
            assert (integers.abs().amax(1) == 127).all()
            off = projection.weight * row_scale(projection.weight) - integers
            assert float(off.abs().max()) < 1e-3


def test_outputs_on_other_tokens_change_less_than_by_rounding_to_nearest() -> None:
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    seen, unseen = correlated(600, 64, 2), correlated(200, 64, 2)
    ours = weight.clone()
    gptq._round_group(group_of(ours), seen.T @ seen)

    def error(other: Tensor) -> float:
        return float(((other - weight) @ unseen.T).square().mean())

    assert error(ours) < 0.5 * error(fake_quantize(weight))


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), outputs=st.integers(1, 12), channels=st.integers(1, 150))
def test_channels_without_correlation_are_rounded_to_nearest(
    seed: int, outputs: int, channels: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, channels, generator=draw)
    hessian = torch.diag(torch.rand(channels, generator=draw) + 0.1)
    ours = weight.clone()
    gptq._round_group(group_of(ours), hessian)
    torch.testing.assert_close(ours, fake_quantize(weight))


def test_channels_that_are_always_zero_do_no_harm() -> None:
    weight = torch.randn(5, 16)
    ours = weight.clone()
    gptq._round_group(group_of(ours), torch.zeros(16, 16))
    torch.testing.assert_close(ours, fake_quantize(weight))


def test_little_memory_takes_more_passes_and_gives_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = random_rows(6)
    whole, parts = random_model("llama"), random_model("llama")
    gptq.round_weights(make_foldable(whole), rows[:3])
    foldable = make_foldable(parts)
    monkeypatch.setattr(gptq, "_HESSIAN_BYTES", 40_000)
    passes = gptq._passes(foldable.groups)
    assert len(passes) > 2
    assert [group for batch_of_groups in passes for group in batch_of_groups] == list(
        foldable.groups
    )
    shares: list[float] = []
    gptq.round_weights(foldable, rows[:3], shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    first = foldable.groups[0].projections[0].weight
    torch.testing.assert_close(first, make_foldable(whole).groups[0].projections[0].weight)


def test_rounding_parts_of_a_projection_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(3)
    weight, inputs = torch.randn(40, 24, generator=draw), torch.randn(90, 24, generator=draw)
    whole, parts = weight.clone(), weight.clone()
    gptq._round_group(group_of(whole), inputs.T @ inputs)
    monkeypatch.setattr(gptq, "_PART_BYTES", 4 * 24 * 7)
    assert [len(part) for (part,) in gptq._parts(group_of(parts))] == [7, 7, 7, 7, 7, 5]
    gptq._round_group(group_of(parts), inputs.T @ inputs)
    torch.testing.assert_close(parts, whole)


PEAK = """
import torch
from packhorse.profiling.run_metrics import peak_memory_bytes
from packhorse.quantization import gptq

channels = 2500
gptq._inverse_cholesky(torch.eye(64), torch.arange(64))
hessian = torch.eye(channels)
before = peak_memory_bytes()
gptq._inverse_cholesky(hessian, torch.arange(channels))
print((peak_memory_bytes() - before) / channels**2)
"""


@pytest.mark.slow
def test_the_inverse_takes_no_more_than_is_said() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    said = gptq.working_bytes(20_000) - 5 * gptq._PART_BYTES - 4 * 20_000**2
    assert float(done.stdout) <= said / 20_000**2 == 24
