"""Probabilities of labels: priors of a language model and how to divide them out, and calibration.

A model finds some labels more probable whatever the text. The prior of each label is estimated and
divided out: p'(label | text) = p(label | text) / prior(label), scaled to sum 1.
- content-free: mean over texts without content (Zhao et al. 2021, Calibrate Before Use, ICML, with
W = diag(prior)^-1 and b = 0).
- texts: mean over training texts, without their labels (Zhou et al. 2023, Batch Calibration).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BINS = 10
"""Bins of `expected_calibration_error`."""

CONTENT_FREE = ("N/A", "[MASK]", "...")
_SMALLEST = 1e-12


def label_probabilities(log_probs: Floats, lengths: Sequence[int]) -> Floats:
    """Return probabilities of the labels [rows, classes]: softmax of mean log-probabilities per
    token.

    The mean makes labels of more tokens no less probable (Brown et al. 2020, section 2.4).

    Args:
        log_probs: of whole labels, natural, [rows, classes].
        lengths: tokens of each label.
    """
    means = log_probs / np.asarray(lengths, dtype=np.float64)
    weights = np.exp(means - means.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


def mean_prior(choices: Floats) -> tuple[float, ...]:
    """Return the mean probabilities [classes] over rows; uniform if there is no row."""
    if not len(choices):
        return (1.0 / choices.shape[1],) * int(choices.shape[1])
    return tuple(float(value) for value in choices.mean(axis=0))


def divide_out_prior(choices: Floats, prior: Sequence[float]) -> Floats:
    """Return the probabilities divided by a prior, each row scaled to sum 1."""
    divided = choices / np.maximum(np.asarray(prior, dtype=np.float64), _SMALLEST)
    total = np.maximum(divided.sum(axis=1, keepdims=True), _SMALLEST)
    return np.asarray(divided / total, dtype=np.float64)


def expected_calibration_error(confidence: Floats, right: npt.NDArray[np.bool_]) -> float:
    """Return sum over bins of (rows in bin / rows) |accuracy in bin - mean confidence in bin|.

    BINS bins of equal width over [0, 1], open below. Source: Naeini et al. 2015; Guo et al. 2017.
    """
    edges = np.ceil(np.clip(confidence, 1e-12, 1.0) * BINS - 1e-9).astype(np.int64) - 1
    gaps = np.zeros(BINS)
    np.add.at(gaps, np.clip(edges, 0, BINS - 1), right.astype(np.float64) - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def brier_score(probabilities: Floats, truth: Ints) -> float:
    """Return the mean over rows of sum over classes of (p - 1[class is the truth])^2, from 0 to 2.

    Source: Brier 1950; twice the two-class form that scikit-learn gives by default.
    """
    wanted = np.zeros_like(probabilities)
    wanted[np.arange(len(truth)), truth] = 1.0
    return float(((probabilities - wanted) ** 2).sum(axis=1).mean())


def fit_temperature(probabilities: Floats, truth: Ints) -> float:
    """Return the temperature T that makes the truth most likely under `with_temperature`.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.

    Args:
        probabilities: [rows, classes].
        truth: Index of the right class of each row.
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        scaled = with_temperature(probabilities, float(np.exp(log_temperature)))
        return float(-np.log(np.maximum(scaled[rows, truth], _SMALLEST)).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def with_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return p^(1/T), each row [classes] scaled to sum 1; T above 1 makes them more even."""
    logs = np.log(np.maximum(probabilities, _SMALLEST)) / temperature
    weights = np.exp(logs - logs.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float64)
