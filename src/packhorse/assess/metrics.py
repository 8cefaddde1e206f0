"""Classification metrics of one contestant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from packhorse.evaluation.probabilities import brier_score, expected_calibration_error
from packhorse.evaluation.statistics import LEVEL, RESAMPLES, Estimate, wilson_interval

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions of a contestant.

    Attributes:
        labels: one per row; None for an answer without a label and for a failed row.
        probabilities: [rows, classes], classes sorted, each row summing to 1; None if it gives
            none.
        failed: rows that failed, included in the None.
    """

    labels: tuple[str | None, ...]
    probabilities: Floats | None = None
    failed: int = 0

    def select(self, indices: Sequence[int]) -> Predictions:
        """Return the predictions of some rows; `failed` is known for all rows only."""
        chosen = None if self.probabilities is None else self.probabilities[list(indices)]
        failed = self.failed if len(indices) == len(self.labels) else 0
        return Predictions(tuple(self.labels[index] for index in indices), chosen, failed)

    def is_correct(self, truth: Sequence[str]) -> npt.NDArray[np.bool_]:
        pairs = zip(self.labels, truth, strict=True)
        return np.array([label == wanted for label, wanted in pairs], dtype=bool)


@dataclass(frozen=True, slots=True)
class ClassificationMetrics:
    """Metrics over `rows` rows.

    Attributes:
        accuracy: correct / rows, Wilson interval; an answer without a label is wrong.
        macro_f1: mean over classes of F1, with percentile bootstrap over rows.
        balanced_accuracy: mean over classes of recall, with percentile bootstrap over rows.
        calibration_error: see `expected_calibration_error`; None without probabilities.
        brier: see `brier_score`; None without probabilities.
        invalid: answers without a label, including failed rows.
        failed: rows that failed.
        valid_accuracy: of answers with a label.
    """

    rows: int
    accuracy: Estimate
    macro_f1: Estimate
    balanced_accuracy: Estimate
    calibration_error: float | None
    brier: float | None
    invalid: int
    failed: int
    valid_accuracy: Estimate | None


def classification_metrics(
    predicted: Predictions, truth: Sequence[str], classes: Sequence[str], *, seed: int = 0
) -> ClassificationMetrics:
    """Compute all metrics; classes: sorted, of the training part."""
    right = predicted.is_correct(truth)
    valid = np.array([label is not None for label in predicted.labels])
    accuracy = wilson_interval(int(right.sum()), len(right))
    assert accuracy is not None
    order = {label: index for index, label in enumerate(classes)}
    wanted = np.array([order[label] for label in truth])
    given = np.array([len(order) if label is None else order[label] for label in predicted.labels])
    probabilities = predicted.probabilities
    return ClassificationMetrics(
        rows=len(right),
        accuracy=accuracy,
        macro_f1=_bootstrapped(macro_f1, wanted, given, len(order), seed),
        balanced_accuracy=_bootstrapped(balanced_accuracy, wanted, given, len(order), seed),
        calibration_error=None
        if probabilities is None
        else expected_calibration_error(
            probabilities.max(axis=1), probabilities.argmax(axis=1) == wanted
        ),
        brier=None if probabilities is None else brier_score(probabilities, wanted),
        invalid=int((~valid).sum()),
        failed=predicted.failed,
        valid_accuracy=wilson_interval(int(right[valid].sum()), int(valid.sum())),
    )


def macro_f1(confusion: Floats) -> Floats:
    """Return the mean over classes of 2 TP / (2 TP + FP + FN).

    Classes that occur neither in truth nor in answers are left out, as in scikit-learn's f1_score,
    which cannot compute all bootstrap resamples at once.

    Args:
        confusion: counts [..., classes, classes + 1]: rows by truth, columns by answer, the last
            column for answers without a label.
    """
    hits = np.diagonal(confusion[..., :-1], axis1=-2, axis2=-1)
    both = confusion.sum(axis=-1) + confusion[..., :-1].sum(axis=-2)
    return _mean_of_known(2 * hits, both)


def balanced_accuracy(confusion: Floats) -> Floats:
    """Return the mean recall over the classes that occur in the truth; see `macro_f1`.

    Source: Brodersen et al. 2010; equals scikit-learn's balanced_accuracy_score.
    """
    hits = np.diagonal(confusion[..., :-1], axis1=-2, axis2=-1)
    return _mean_of_known(hits, confusion.sum(axis=-1))


def _mean_of_known(above: Floats, below: Floats) -> Floats:
    known = below > 0
    shares = np.divide(above, below, out=np.zeros_like(below, dtype=np.float64), where=known)
    return np.asarray(shares.sum(axis=-1) / np.maximum(known.sum(axis=-1), 1), dtype=np.float64)


def _bootstrapped(
    measure: Callable[[Floats], Floats], truth: Ints, given: Ints, classes: int, seed: int
) -> Estimate:
    """Return the metric with a percentile interval over RESAMPLES resamples of rows."""
    cells = truth * (classes + 1) + given
    shape = (classes, classes + 1)
    counts = np.bincount(cells, minlength=classes * (classes + 1)).astype(np.float64)
    value = float(measure(counts.reshape(shape)))
    if len(cells) == 1:
        return Estimate(value, None, None, 1, "one row, no interval", 0.0)
    draws = np.random.default_rng(seed).multinomial(
        len(cells), counts / counts.sum(), size=RESAMPLES
    )
    found = measure(draws.reshape(-1, *shape).astype(np.float64))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), len(cells), "percentile bootstrap over rows")
