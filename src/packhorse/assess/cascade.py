"""Cascade: the classic classifier if it is confident, the language model otherwise.

Rows whose highest classic probability is below the threshold go to the model. The threshold is
chosen on validation rows of the training part, with out-of-fold classic probabilities; the test
rows only measure the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from packhorse.assess.metrics import Predictions
from packhorse.assess.paired_comparison import PairedComparison
from packhorse.evaluation.statistics import Estimate, wilson_interval

Floats = npt.NDArray[np.float64]

MAX_POINTS = 40


@dataclass(frozen=True, slots=True)
class CascadePoint:
    """The cascade at one threshold.

    Attributes:
        threshold: rows below it go to the model.
        share: of test rows that do.
        accuracy: on the test rows, with Wilson interval.
        validation_accuracy: on the validation rows.
        validation_share: on the validation rows.
        seconds: per 1,000 rows, of the classic contestant for all rows and of the model for its
            share.
        core_seconds: as seconds.
    """

    threshold: float
    share: float
    accuracy: Estimate
    validation_accuracy: float
    validation_share: float
    seconds: float
    core_seconds: float


@dataclass(frozen=True, slots=True)
class Cascade:
    """The curve of a cascade.

    Attributes:
        classic: name of the contestant.
        model: name of the contestant.
        points: by rising threshold, from all classic to all model.
        chosen: index of the recommended point.
        validation_rows: rows it was chosen on.
        against_model: comparison with the model alone on the test rows.
        against_classic: comparison with the classic contestant alone.
    """

    classic: str
    model: str
    points: tuple[CascadePoint, ...]
    chosen: int
    validation_rows: int
    against_model: PairedComparison
    against_classic: PairedComparison

    @property
    def point(self) -> CascadePoint:
        return self.points[self.chosen]


def candidate_thresholds(confidence: Floats) -> list[float]:
    """Return the thresholds to try.

    0 (all classic), midpoints between neighbouring confidences thinned to MAX_POINTS, and a value
    above all (all model).
    """
    ordered = np.unique(confidence)
    between = (ordered[:-1] + ordered[1:]) / 2
    if len(between) > MAX_POINTS:
        between = between[np.linspace(0, len(between) - 1, MAX_POINTS).round().astype(int)]
    return [0.0, *(float(value) for value in between), 1.01]


def apply_threshold(
    classic: Predictions, model: Predictions, threshold: float
) -> tuple[Predictions, npt.NDArray[np.bool_]]:
    """Return the cascade's predictions and which rows went to the model."""
    assert classic.probabilities is not None
    to_model = classic.probabilities.max(axis=1) < threshold
    labels = tuple(
        theirs if goes else own
        for own, theirs, goes in zip(classic.labels, model.labels, to_model, strict=True)
    )
    return Predictions(labels), to_model


def choose_point(accuracies: Sequence[float], shares: Sequence[float], tolerance: float) -> int:
    """Return the index with the smallest model share within `tolerance` of the best accuracy."""
    best = max(accuracies)
    close = [index for index, value in enumerate(accuracies) if value >= best - tolerance]
    return min(close, key=lambda index: (shares[index], -accuracies[index]))


def wilson_accuracy(predicted: Predictions, truth: Sequence[str]) -> Estimate:
    right = predicted.is_correct(truth)
    found = wilson_interval(int(right.sum()), len(right))
    assert found is not None
    return found
