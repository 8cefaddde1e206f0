"""Panel kernels and steps that threads share, on CPUs with AVX-512."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from packhorse.data import Batch, EngineOutput, Failure, Prompt, SamplingParams
from packhorse.engines.packed import PackedEngine
from packhorse.engines.packed import engine as engine_module
from packhorse.engines.packed.panel_kernels import BLOCK_STEPS, multiply_panel
from packhorse.engines.packed.panel_network import PanelNetwork
from packhorse.engines.packed.panels import (
    OFFSET,
    PANEL,
    column_offsets,
    has_panel_kernels,
    pack_float_panels,
    pack_panels,
    unpack_panels,
)
from random_models import FAMILIES, saved

pytestmark = pytest.mark.skipif(not has_panel_kernels(), reason="this CPU lacks AVX-512 VNNI")
INPUTS = (16, 576, 4 * BLOCK_STEPS + 64)
"""Input channels; the last have more than one block."""


@njit  # type: ignore[untyped-decorator]
def multiply(
    sums: Any, outputs: Any, rows_in: Any, inputs: Any, rows: Any, panels: Any, starts: Any,
    factor: Any, zeros: Any,
) -> None:  # fmt: skip
    size = inputs * rows_in.itemsize * PANEL
    for panel in range((outputs + PANEL - 1) // PANEL):
        multiply_panel(
            sums, panel * PANEL, outputs, min(PANEL, outputs - panel * PANEL) // 16, rows_in, 0,
            inputs, rows, panels + panel * size, starts + panel * PANEL * 4, factor, zeros,
        )  # fmt: skip


def product(
    kind: Any, rows: int, inputs: int, outputs: int, factor: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the product of random matrices by panels, and exactly."""
    chance = np.random.default_rng(rows)
    zeros = np.zeros(PANEL, np.int32)
    if kind is np.float32:
        weights: Any = chance.standard_normal((outputs, inputs)).astype(np.float32)
        given = chance.standard_normal((rows, inputs)).astype(np.float32)
        panels: Any = pack_float_panels(weights)
        activations, starts = given, np.zeros(panels.shape[0] * PANEL, np.float32)
        sums: Any = np.full((rows, outputs), 7, np.float32)
    else:
        weights = chance.integers(-127, 128, (outputs, inputs)).astype(np.int8)
        given = chance.integers(-127, 128, (rows, inputs)).astype(np.int8)
        panels = pack_panels(weights)
        activations = (given.astype(np.int16) + OFFSET).astype(np.uint8)
        starts = np.zeros(len(panels) * PANEL, np.int32)
        starts[:outputs] = column_offsets(weights)
        sums = np.full((rows, outputs), 7, np.int32)
    multiply(
        sums.reshape(-1), outputs, activations.reshape(-1), inputs, rows, panels.ctypes.data,
        starts.ctypes.data, factor, zeros.ctypes.data,
    )  # fmt: skip
    exact = given.astype(np.float64) @ weights.astype(np.float64).T
    return sums, exact + factor * 7


@pytest.mark.parametrize("outputs", [64, 16, 144, 176])
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 13, 40])
def test_int8_products_are_exact(rows: int, inputs: int, outputs: int) -> None:
    for factor in (0, 16):
        found, exact = product(np.int8, rows, inputs, outputs, factor)
        assert (found == exact).all()


@pytest.mark.parametrize("inputs", INPUTS)
def test_float32_rows_have_the_same_bits_in_any_company(inputs: int) -> None:
    chance = np.random.default_rng(0)
    weights = chance.standard_normal((80, inputs)).astype(np.float32)
    given = chance.standard_normal((40, inputs)).astype(np.float32)
    panels, zeros = pack_float_panels(weights), np.zeros(2 * PANEL, np.float32)

    def run(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        sums = np.empty((len(rows), 80), np.float32)
        multiply(
            sums.reshape(-1), 80, np.ascontiguousarray(rows).reshape(-1), inputs, len(rows),
            panels.ctypes.data, zeros.ctypes.data, 0, zeros.ctypes.data,
        )  # fmt: skip
        return sums

    together = run(given)
    exact = given.astype(np.float64) @ weights.astype(np.float64).T
    assert together == pytest.approx(exact, rel=1e-4, abs=1e-4 * np.sqrt(inputs))
    for start, stop in ((0, 1), (3, 8), (7, 40)):
        assert (run(given[start:stop]) == together[start:stop]).all()


@pytest.mark.parametrize("shape", [(64, 16), (70, 18), (1, 4), (130, 576)])
def test_panels_unpack_to_the_same_weights(shape: tuple[int, int]) -> None:
    weights = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
    assert (unpack_panels(pack_panels(weights), *shape) == weights).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    saved(FAMILIES["llama"], path)
    return path


def engine(folder: Path, quantization: str, threads: int = 2) -> PackedEngine:
    return PackedEngine(
        folder, end_ids=(), max_context=128, quantization=quantization, threads=threads,
        cache_bytes=1 << 22,
    )  # fmt: skip


def rows(count: int, new: int = 12) -> Iterator[Batch]:
    chance = np.random.default_rng(3)
    prompts = []
    for index in range(count):
        token_ids = chance.integers(8, 200, int(chance.integers(1, 40))).tolist()
        heat = 0.8 if index % 5 == 4 else 0.0
        options = SamplingParams(new, temperature=heat, seed=index)
        prompts.append(Prompt(index, tuple(token_ids), options))
    return iter([Batch(tuple(prompts))])


def texts(made: PackedEngine, batches: Iterator[Batch]) -> dict[int, tuple[int, ...]]:
    found = list(made.run(batches))
    assert all(isinstance(each, EngineOutput) for each in found)
    return {each.index: tuple(each.token_ids) for each in found}  # type: ignore[union-attr]


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_shared_and_separate_steps_give_the_same_tokens(
    folder: Path, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for shared_rows, threads in ((0, 1), (0, 2), (512, 2), (5, 3)):
        monkeypatch.setattr(engine_module, "SHARED_ROWS", shared_rows)
        made = engine(folder, quantization, threads)
        found.append(texts(made, rows(21)))
        found.append({k: v for each in range(3) for k, v in texts(made, rows(21)).items()})
        made.close()
    assert all(each == found[0] for each in found)


def test_a_step_whose_helper_fails_is_computed_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engine(folder, "int8")
    expected = texts(made, rows(6))
    join = PanelNetwork.join
    failed: list[int] = []

    def fail_once(self: PanelNetwork, step: Any, tables: Any, shared: Any, own: Any) -> None:
        if shared is not own and not failed:
            failed.append(1)
            shared.counters[:] = np.iinfo(np.int64).max // 2
            raise RuntimeError("a helper fails")
        join(self, step, tables, shared, own)

    monkeypatch.setattr(PanelNetwork, "join", fail_once)
    found = {}
    for _ in range(20):  # a helper joins only if it wakes before the step ends
        found = texts(made, rows(6))
        if failed:
            break
    assert failed
    assert found == expected
    made.close()


def test_a_leader_that_fails_alone_costs_that_row_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engine(folder, "int8")
    join = PanelNetwork.join

    def fail_on_7(self: PanelNetwork, step: Any, tables: Any, shared: Any, own: Any) -> None:
        if 7 in step.tokens[: step.num_tokens]:
            shared.counters[:] = np.iinfo(np.int64).max // 2
            raise RuntimeError("token 7")
        join(self, step, tables, shared, own)

    monkeypatch.setattr(PanelNetwork, "join", fail_on_7)
    prompts = tuple(
        Prompt(index, (7 if index == 2 else 9, 11, 12), SamplingParams(max_new_tokens=1))
        for index in range(5)
    )
    found = {each.index: each for each in made.run(iter([Batch(prompts)]))}
    assert isinstance(found[2], Failure)
    assert all(isinstance(found[index], EngineOutput) for index in (0, 1, 3, 4))
    made.close()


@pytest.mark.slow
def test_without_panel_kernels_int8_gives_the_same_tokens(folder: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from engines.packed.test_panels import engine, rows, texts\n"
        "print(sorted(texts(engine(Path(sys.argv[1]), 'int8'), rows(9)).items()))"
    )
    tests = Path(__file__).parents[2]
    done = [
        subprocess.run(
            [sys.executable, "-c", code, str(folder), str(tests)],
            env={**os.environ, "PACKHORSE_NATIVE": flag},
            check=True, capture_output=True, text=True,
        ).stdout
        for flag in ("1", "0")
    ]  # fmt: skip
    assert done[0] == done[1]
    assert done[0].startswith("[(0,")
