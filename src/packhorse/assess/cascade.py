"""Classic where it is sure, language model for the rest: accuracy against cost.

A row whose highest classic probability is below the threshold goes to the model. The threshold is
chosen on validation rows of the training part, where the classic probabilities are out of fold;
the test rows only say what it comes to.
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
    """threshold: a row below it goes to the model. share: of test rows that do. accuracy: on the
    test rows, Wilson. validation_accuracy, validation_share: on the validation rows. seconds,
    core_seconds: per 1,000 rows, the classic contestant's for all and the model's for its share.
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
    """classic, model: names. points: by rising threshold, from all classic to all model. chosen:
    place of the recommended one. against_model, against_classic: it compared with each alone, on
    the test rows. validation_rows: it was chosen on."""

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
    """0 (all classic), midpoints between neighbouring confidences thinned to MOST_POINTS, and a
    value above all (all model)."""
    ordered = np.unique(confidence)
    between = (ordered[:-1] + ordered[1:]) / 2
    if len(between) > MAX_POINTS:
        between = between[np.linspace(0, len(between) - 1, MAX_POINTS).round().astype(int)]
    return [0.0, *(float(value) for value in between), 1.01]


def apply_threshold(
    classic: Predictions, model: Predictions, threshold: float
) -> tuple[Predictions, npt.NDArray[np.bool_]]:
    """What the cascade says, and which rows went to the model."""
    assert classic.probabilities is not None
    to_model = classic.probabilities.max(axis=1) < threshold
    labels = tuple(
        theirs if goes else own
        for own, theirs, goes in zip(classic.labels, model.labels, to_model, strict=True)
    )
    return Predictions(labels), to_model


def choose_point(accuracies: Sequence[float], shares: Sequence[float], tolerance: float) -> int:
    """The smallest share to the model among the points within `tolerance` of the best accuracy."""
    best = max(accuracies)
    close = [place for place, value in enumerate(accuracies) if value >= best - tolerance]
    return min(close, key=lambda place: (shares[place], -accuracies[place]))


def wilson_accuracy(said: Predictions, truth: Sequence[str]) -> Estimate:
    right = said.is_correct(truth)
    found = wilson_interval(int(right.sum()), len(right))
    assert found is not None
    return found
