"""What a language model prefers before it has read anything, and taking that out of its choice.

A model finds some labels more probable whatever the text. The prior of each label is estimated and
divided out: p'(label | text) = p(label | text) / prior(label), scaled to sum 1.
- content-free: the prior is the mean choice after texts that say nothing (Zhao et al. 2021,
  Calibrate Before Use, ICML, with W = diag(prior)^-1 and b = 0).
- texts: the mean choice after training texts, without their labels (Zhou et al. 2023, Batch
  Calibration).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CONTENT_FREE = ("N/A", "[MASK]", "...")
_SMALLEST = 1e-12


def label_probabilities(log_probs: Floats, lengths: Sequence[int]) -> Floats:
    """Probabilities among the labels [rows, classes]: the softmax of each label's mean
    log-probability a token, so that a label of more tokens is no less probable for that.

    log_probs: of whole labels, natural, [rows, classes]. lengths: tokens of each label. Source:
    length normalisation as in Brown et al. 2020, section 2.4.
    """
    means = log_probs / np.asarray(lengths, dtype=np.float64)
    weights = np.exp(means - means.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


def mean_prior(choices: Floats) -> tuple[float, ...]:
    """The mean choice [classes] over rows; equal for all where there is no row."""
    if not len(choices):
        return (1.0 / choices.shape[1],) * int(choices.shape[1])
    return tuple(float(value) for value in choices.mean(axis=0))


def divide_out_prior(choices: Floats, prior: Sequence[float]) -> Floats:
    """The choices with a prior divided out, each row scaled to sum 1."""
    divided = choices / np.maximum(np.asarray(prior, dtype=np.float64), _SMALLEST)
    total = np.maximum(divided.sum(axis=1, keepdims=True), _SMALLEST)
    return np.asarray(divided / total, dtype=np.float64)
