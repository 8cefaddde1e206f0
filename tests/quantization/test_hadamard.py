"""H Hᵀ = n I for every size offered, and orthogonal matrices for all others."""

from __future__ import annotations

import pytest
import torch

from packhorse.quantization.hadamard import Rotation, hadamard_matrix, rotation_matrix

HIDDEN_SIZES = (
    1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 48, 64, 72, 80, 96, 104, 112, 120, 128, 256, 320, 384, 448,
    512, 576, 640, 768, 896, 960, 1024, 1152, 1216, 1280, 1536, 1600, 1792, 1920, 2048, 2304, 2560,
)  # fmt: skip


@pytest.mark.parametrize("size", HIDDEN_SIZES)
def test_rows_are_orthogonal_and_of_ones(size: int) -> None:
    matrix = hadamard_matrix(size)
    assert matrix is not None
    assert torch.equal(matrix.abs(), torch.ones(size, size, dtype=torch.float64))
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", [3, 6, 10, 13, 26, 52, 100])
def test_a_size_without_a_construction_gets_a_random_rotation(size: int) -> None:
    assert hadamard_matrix(size) is None
    matrix = rotation_matrix(size, 0)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    assert torch.equal(matrix, rotation_matrix(size, 0))
    assert not torch.equal(matrix, rotation_matrix(size, 1))


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_one_large_channel_is_spread_evenly(seed: int | None) -> None:
    turned = 1000.0 * torch.eye(576, dtype=torch.float64)[5] @ rotation_matrix(576, seed)
    torch.testing.assert_close(turned.abs(), torch.full_like(turned, 1000 / 24))


def test_the_seed_draws_the_signs() -> None:
    plain, signed = rotation_matrix(64, None), rotation_matrix(64, 3)
    signs = (signed / plain)[:, 0]
    assert set(signs.tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(signed, signs[:, None] * plain)
    assert torch.equal(signed, rotation_matrix(64, 3))
    assert not torch.equal(signed, rotation_matrix(64, 4))


@pytest.mark.parametrize("size", [1, 20, 36, 64, 576, 896, 1600, 2048, 1288])
@pytest.mark.parametrize("seed", [None, 0])
def test_factors_of_a_rotation_multiply_like_the_matrix(size: int, seed: int | None) -> None:
    matrix, rotation = rotation_matrix(size, seed).float(), Rotation.of(size, seed)
    weight = torch.randn(5, size)
    assert torch.allclose(rotation.rotate_inputs(weight), weight @ matrix, atol=1e-4)
    columns = weight.t().contiguous()
    assert torch.allclose(rotation.rotate_outputs(columns), matrix.T @ columns, atol=1e-4)
