"""Learning curve of a classic contestant: accuracy against labels per class.

For each size, rows of each class are drawn from the training part (all if a class has no more), the
contestant is fitted on them, and evaluated on the language model's test rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from packhorse.assess.families import fit
from packhorse.assess.splits import Indices
from packhorse.assess.tuning import TrainingData, TunedFamily
from packhorse.evaluation.statistics import LEVEL, RESAMPLES

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SMALLEST = 8
SEEDS = 5


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Accuracy at one size.

    Attributes:
        per_class: labels of each class at most.
        rows: labels in total.
        accuracies: one per draw.
        mean: over draws; low and high: percentile bootstrap over draws and test rows.
    """

    per_class: int
    rows: int
    accuracies: tuple[float, ...]
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LabelsNeeded:
    """Labels per class at which the contestant is as accurate as the language model.

    Attributes:
        value: where the curve first reaches it, interpolated on a log scale; 0: already at the
            smallest size, None: at no size.
        low: of the middle 95 % of resamples of draws and test rows; also high.
        reached: share of resamples that reach it.
    """

    value: float | None
    low: float | None
    high: float | None
    reached: float


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """The curve of a contestant; level: accuracy of the language model on the same rows."""

    name: str
    title: str
    points: tuple[CurvePoint, ...]
    level: float
    needed: LabelsNeeded


def training_sizes(labels: npt.NDArray[np.str_]) -> list[int]:
    """Return 8, 16, 32 ... labels per class while the second largest class has as many, and all."""
    counts = np.sort(np.unique(labels, return_counts=True)[1])[::-1]
    most = int(counts[1])
    found, size = [], SMALLEST
    while size < most:
        found.append(size)
        size *= 2
    return [*found, int(counts[0])]


def learning_curve(
    tuned: TunedFamily,
    data: TrainingData,
    test: Indices,
    truth: npt.NDArray[np.str_],
    model_correct: Bools,
    train: Indices,
    *,
    seed: int,
) -> LearningCurve:
    """Fit and evaluate one contestant at every size.

    Args:
        test: indices in `data` of the rows to evaluate on.
        truth: labels of the test rows.
        model_correct: whether the model labels them correctly.
        train: indices in `data` of the rows to draw from.
    """
    labels = data.labels[train]
    right: list[Bools] = []
    rows: list[int] = []
    steps = training_sizes(labels)
    for size in steps:
        draws = []
        for draw in range(SEEDS if size != steps[-1] else 1):
            chosen = train[draw_rows(labels, size, seed + draw)]
            fitted, judged = data.compute_features(tuned.family, chosen, test)
            classifier = tuned.family.make(tuned.value, len(set(labels.tolist())))
            fit(classifier, fitted, data.labels[chosen])
            draws.append(classifier.predict(judged) == truth)
        right.append(np.array(draws))
        rows.append(len(chosen))
    means = _resampled(right, model_correct, seed)
    points = tuple(
        CurvePoint(
            per_class=size,
            rows=count,
            accuracies=tuple(float(value) for value in each.mean(axis=1)),
            mean=float(each.mean()),
            low=float(np.quantile(spread, (1 - LEVEL) / 2)),
            high=float(np.quantile(spread, (1 + LEVEL) / 2)),
        )
        for size, count, each, spread in zip(steps, rows, right, means[:, :-1].T, strict=True)
    )
    level = float(model_correct.mean())
    return LearningCurve(
        tuned.family.name, tuned.family.title, points, level, labels_needed(points, level, means)
    )


def draw_rows(labels: npt.NDArray[np.str_], per_class: int, seed: int) -> Indices:
    """Return indices of at most `per_class` random rows of each class."""
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:per_class]
        for label in sorted(set(labels.tolist()))
    ]
    return np.sort(np.concatenate(chosen))


def labels_needed(points: Sequence[CurvePoint], level: float, means: Floats) -> LabelsNeeded:
    """Return where the curve crosses the model's accuracy, with its interval.

    Args:
        means: resampled curves [resamples, sizes + 1]; the last column is the model's accuracy on
            the same resampled rows.
    """
    indices = [float(point.per_class) for point in points]
    value = first_crossing(indices, [point.mean for point in points], level)
    found = [first_crossing(indices, row[:-1].tolist(), float(row[-1])) for row in means]
    ordered = sorted(math.inf if each is None else each for each in found)
    low = ordered[int((1 - LEVEL) / 2 * (len(ordered) - 1))]
    high = ordered[math.ceil((1 + LEVEL) / 2 * (len(ordered) - 1))]
    return LabelsNeeded(
        value,
        None if math.isinf(low) else low,
        None if math.isinf(high) else high,
        sum(each is not None for each in found) / len(found),
    )


def first_crossing(indices: Sequence[float], values: Sequence[float], level: float) -> float | None:
    """Return where a curve first reaches `level`, interpolated on the logarithm of `indices`.

    0 if its first value does, None if no value does.
    """
    if values[0] >= level:
        return 0.0
    for at in range(1, len(indices)):
        if values[at] >= level:
            share = (level - values[at - 1]) / (values[at] - values[at - 1])
            low, high = math.log(indices[at - 1]), math.log(indices[at])
            return math.exp(low + share * (high - low))
    return None


def _resampled(right: Sequence[Bools], model_correct: Bools, seed: int) -> Floats:
    """Return mean accuracies [RESAMPLES, sizes + 1] over resampled draws and test rows.

    All sizes and the model (last column) use the same test rows.
    """
    rng = np.random.default_rng(seed)
    count = len(model_correct)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
    columns = []
    for each in right:
        by_draw = weights @ each.T.astype(np.float64)
        draws = rng.integers(0, len(each), size=(RESAMPLES, len(each)))
        columns.append(np.take_along_axis(by_draw, draws, axis=1).mean(axis=1))
    columns.append(weights @ model_correct.astype(np.float64))
    return np.stack(columns, axis=1)
