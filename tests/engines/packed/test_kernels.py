"""Element-wise kernels, compared with torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from packhorse.engines.packed.kernels import (
    GELU_TANH,
    SILU,
    activate,
    add_and_normalize,
    choose_best,
    normalize,
    split_heads,
)
from packhorse.engines.packed.tiles import BLOCK
from packhorse.engines.packed.vectors import LANES

ROWS, WIDTH = 5, 96
Floats = NDArray[np.float32]


def floats(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(count: int, seed: int) -> Floats:
    return (np.square(floats(count, seed=seed)) / 100).astype(np.float32)


def product(rows: int, columns: int) -> tuple[NDArray[np.int32], Floats, Floats, Floats, Floats]:
    """Return accumulators, row scales, column scales, bias, and the dequantized values."""
    sums = np.random.default_rng(1).integers(-40_000, 40_000, (rows, columns)).astype(np.int32)
    by_row, by_column = positive(rows, seed=2), positive(columns, seed=3)
    bias = floats(columns, seed=4)
    numbers = sums * by_row[:, None] * by_column + bias
    return sums, by_row, by_column, bias, numbers.astype(np.float32)


def dequantized(output: NDArray[np.int8], scales: Floats) -> Floats:
    return output.reshape(len(scales), -1) * scales[:, None]


@pytest.mark.parametrize("is_layer_norm", [False, True])
def test_norms(is_layer_norm: bool) -> None:
    residual, weight, bias = floats(ROWS, WIDTH), floats(WIDTH, seed=5), floats(WIDTH, seed=6)
    output, scales = np.empty(ROWS * WIDTH, np.float32), np.ones(ROWS, np.float32)
    row_buffer, epsilon = np.empty(WIDTH, np.float32), np.float32(1e-5)
    normalize(
        residual, 0, ROWS, weight, bias, WIDTH, is_layer_norm, epsilon, row_buffer, output, scales
    )
    given, shape = torch.from_numpy(residual), (WIDTH,)
    if is_layer_norm:
        expected = torch.layer_norm(given, shape, torch.tensor(weight), torch.tensor(bias), 1e-5)
    else:
        expected = torch.rms_norm(given, shape, torch.tensor(weight), 1e-5)
    assert output.reshape(ROWS, WIDTH) == pytest.approx(expected.numpy(), abs=1e-5)


def test_an_int8_row_is_accurate_and_independent_of_its_neighbours() -> None:
    sums, by_row, by_column, bias, numbers = product(ROWS, WIDTH)
    weight = np.ones(WIDTH, np.float32)

    def run(rows: slice) -> tuple[NDArray[np.int8], Floats, Floats]:
        residual = floats(ROWS, WIDTH)[rows].copy()
        count = len(residual)
        output, scales = np.empty(count * WIDTH, np.int8), np.empty(count, np.float32)
        add_and_normalize(
            sums[rows].ravel(), by_row[rows].copy(), by_column, bias, residual, 0, count,
            np.empty(0, np.float32), weight, bias, WIDTH, False, np.float32(1e-5),
            np.empty(WIDTH, np.float32), output, scales,
        )  # fmt: skip
        return output, scales, residual

    output, scales, residual = run(slice(None))
    assert residual == pytest.approx(floats(ROWS, WIDTH) + numbers, rel=1e-5, abs=1e-4)
    expected = torch.rms_norm(torch.from_numpy(residual), (WIDTH,), torch.from_numpy(weight), 1e-5)
    assert (np.abs(dequantized(output, scales) - expected.numpy()) <= 0.51 * scales[:, None]).all()
    for row in range(ROWS):
        alone, scale, _ = run(slice(row, row + 1))
        assert (alone == output.reshape(ROWS, WIDTH)[row]).all()
        assert scale[0] == scales[row]


@pytest.mark.parametrize("hadamard_order", [1, 2])
@pytest.mark.parametrize("gated", [False, True])
def test_activations(gated: bool, hadamard_order: int) -> None:
    columns = 2 * WIDTH if gated else WIDTH
    sums, by_row, by_column, bias, numbers = product(ROWS, columns)
    output, scales = np.empty(ROWS * WIDTH, np.int8), np.empty(ROWS, np.float32)
    activate(
        sums.ravel(), by_row, by_column, bias, 0, ROWS, WIDTH, gated, SILU if gated else GELU_TANH,
        hadamard_order,
        np.empty(WIDTH, np.float32), output, scales,
    )  # fmt: skip
    gate = torch.from_numpy(numbers)
    if gated:
        expected = torch.nn.functional.silu(gate[:, :WIDTH]) * gate[:, WIDTH:]
    else:
        expected = torch.nn.functional.gelu(gate, approximate="tanh")
    if hadamard_order == 2:
        pairs = expected.reshape(ROWS, -1, 2, LANES)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        expected = torch.stack([first + second, first - second], dim=2).reshape(ROWS, WIDTH)
    error = np.abs(dequantized(output, scales) - expected.numpy())
    assert (error <= 0.51 * scales[:, None] + 1e-5).all()


@pytest.mark.parametrize("width", [48, 50])
def test_the_first_of_the_largest_logits_is_chosen(width: int) -> None:
    sums: Any = np.random.default_rng(7).integers(-9, 10, (40, 2 * width)).astype(np.int32)
    ones = np.ones(40, np.float32)
    ones[3] = np.nan
    best, at = np.full(40, -np.inf, np.float32), np.zeros(40, np.int64)
    for start in (0, width):
        part = np.ascontiguousarray(sums[:, start : start + width]).ravel()
        scales = np.ones(2 * width, np.float32)
        choose_best(part, ones, scales, start, 40, width, width, best, at)
    expected = sums.argmax(axis=1)
    assert best[3] == -np.inf
    expected[3] = 0
    assert at.tolist() == expected.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [np.float32, np.int8])
def test_attention_scores_survive_an_outlier_channel(kind: type) -> None:
    width, group, none = 64, 3, np.empty((0, 0), np.float32)
    numbers = floats(BLOCK, (group + 2) * width)
    numbers[:, group * width + 37] += 40
    queries = np.empty((1, BLOCK, group, width), np.float32)
    keys: NDArray[Any] = np.zeros((1, 1, 1, width, BLOCK), kind)
    values: NDArray[Any] = np.zeros((1, 1, 1, BLOCK, width), kind)
    key_scales, value_scales = np.ones((2, 1, 1, 1, BLOCK), np.float32)
    ones, zeros = np.ones(numbers.size, np.float32), np.zeros(numbers.size, np.float32)
    split_heads(
        numbers, ones, ones, zeros, 0, BLOCK, np.arange(BLOCK, dtype=np.int32),
        np.arange(BLOCK, dtype=np.int32), none.ravel(), np.zeros((1, 1), np.int32),
        np.zeros(BLOCK, np.int32), 0, -1, none, none, none.ravel(), none.ravel(), width,
        np.float32(1e-5), np.empty(width, np.float32), queries, keys, values, key_scales,
        value_scales,
    )  # fmt: skip
    stored = keys[0, 0, 0] * key_scales[0, 0, 0]
    found = queries[0].reshape(-1, width) @ stored
    asked, given = (
        numbers[:, : group * width].reshape(-1, width),
        numbers[:, group * width :][:, :width],
    )
    expected = asked @ given.T / 8
    steps = np.abs(given).max(1, keepdims=True) / 127
    unrotated = asked @ (np.rint(given / steps) * steps).T / 8
    if kind is np.float32:
        assert found == pytest.approx(expected, abs=1e-4)
    else:
        assert np.abs(found - expected).mean() < 0.7 * np.abs(unrotated - expected).mean()
