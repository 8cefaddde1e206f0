"""The fit compared with scipy's, and with known costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from packhorse.batching.cost import CostModel, WorkCounts, count_work
from packhorse.batching.sizes import RowSize
from packhorse.calibration.fit import fit
from packhorse.calibration.probes import PROBES, Observation

TRUE = WorkCounts(0.01, 4e-4, 2e-7, 0.005, 8e-4, 1e-6)


def observed(coefficients: WorkCounts, noise: float = 0.0, seed: int = 0) -> list[Observation]:
    random = np.random.default_rng(seed)
    model = CostModel("min-prefix-prefill", 1, coefficients)
    works = [
        count_work(
            "min-prefix-prefill",
            [RowSize(probe.prompt, probe.new)] * probe.rows,
            [new] * probe.rows,
        )
        for probe in PROBES
        for new in (1, probe.new)
    ]
    return [
        Observation(work, model.seconds(work) * float(np.exp(noise * random.normal())))
        for work in works
    ]


def test_known_costs_are_found() -> None:
    found, error = fit(observed(TRUE))
    assert found == pytest.approx(TRUE, rel=1e-3)
    assert error < 1e-4


@given(st.integers(0, 1000), st.floats(0, 0.5))
def test_as_good_as_scipys_nonnegative_least_squares(seed: int, noise: float) -> None:
    observations = observed(TRUE, noise, seed)
    counts = np.array([each.work for each in observations])
    relative = counts / np.array([each.seconds for each in observations])[:, None]
    scale = relative.max(axis=0)
    _, theirs = nnls(relative / scale, np.ones(len(relative)))
    found, _ = fit(observations)
    ours = float(np.linalg.norm(relative @ np.array(found) - 1))
    assert all(value >= 0 for value in found)
    assert ours <= theirs * 1.001 + 1e-6


def test_work_that_nobody_did_costs_nothing() -> None:
    found, _ = fit(
        [
            Observation(WorkCounts(1, 0, 0, 2, 0, 0), 3.0),
            Observation(WorkCounts(1, 0, 0, 4, 0, 0), 5.0),
        ]
    )
    assert found == pytest.approx(WorkCounts(1, 0, 0, 1, 0, 0), abs=1e-4)
