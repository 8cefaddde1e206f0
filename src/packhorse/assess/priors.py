"""Label priors of a language model, and how to divide them out.

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
