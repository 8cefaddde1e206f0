"""Fit of a cost model's coefficients to observations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from packhorse.batching.cost import WorkCounts
from packhorse.calibration.probes import Observation

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHORTEST_SECONDS = 1e-6
_SWEEPS = 20_000
_CONVERGED = 1e-12


def fit(observations: Sequence[Observation]) -> tuple[WorkCounts, float]:
    """Return the coefficients (seconds per unit of each `WorkCounts` field) and the fit's error.

    Least squares of relative errors with non-negative coefficients, by coordinate descent, which
    converges for this convex problem. Work that no observation contains costs nothing. The error is
    the median relative error.
    """
    counts = np.array([observation.work for observation in observations], dtype=float)
    seconds = np.array([max(_SHORTEST_SECONDS, each.seconds) for each in observations])
    relative = counts / seconds[:, None]
    scale = np.maximum(np.abs(relative).max(axis=0), 1e-300)
    solution = _nonnegative_least_squares(relative / scale, np.ones(len(seconds)))
    coefficients = solution / scale
    errors = np.abs(counts @ coefficients / seconds - 1)
    return WorkCounts(*(float(value) for value in coefficients)), float(np.median(errors))


def _nonnegative_least_squares(
    matrix: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    gram, product = matrix.T @ matrix, matrix.T @ target
    solution = np.zeros(matrix.shape[1])
    for _ in range(_SWEEPS):
        before = solution.copy()
        for place, own in enumerate(np.diag(gram)):
            if own > 0:
                rest = product[place] - gram[place] @ solution + own * solution[place]
                solution[place] = max(0.0, rest / own)
        if np.abs(solution - before).max() <= _CONVERGED:
            break
    return solution
