"""Tune the classic contestants by repeated cross-validation inside the training part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from packhorse.assess.families import Family, fit
from packhorse.assess.features import NgramCounts
from packhorse.assess.splits import Fold, Indices

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Labels and features of all rows, addressed by index.

    ngrams and embeddings are None if no contestant needs them.
    """

    labels: npt.NDArray[np.str_]
    pieces: NgramCounts
    embeddings: npt.NDArray[np.float32] | None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.labels.tolist())))

    def compute_features(self, family: Family, fit: Indices, *others: Indices) -> list[Any]:
        """Return a family's features of the rows it is fitted on, and of others."""
        if family.sees == "pieces":
            return self.pieces.compute_tfidf(fit, *others)
        if family.sees == "embeddings":
            assert self.embeddings is not None
            return [self.embeddings[indices] for indices in (fit, *others)]
        return [np.zeros((len(indices), 1), np.float32) for indices in (fit, *others)]


@dataclass(frozen=True, slots=True)
class TunedFamily:
    """A family with its best setting.

    Attributes:
        accuracy: mean over folds; spread: their standard deviation.
        tried: (value, mean accuracy) of each.
        seconds: of all fits; also core_seconds.
    """

    family: Family
    value: float
    accuracy: float
    spread: float
    tried: tuple[tuple[float, float], ...]
    seconds: float
    core_seconds: float


def tune(
    families: Sequence[Family], data: TrainingData, folds: Sequence[Fold]
) -> list[TunedFamily]:
    """Return the setting with the highest mean accuracy of each family, the first of equal ones.

    Equals scikit-learn's GridSearchCV, but computes the features of a fold once for all values and
    measures core-seconds.
    """
    accuracies: dict[tuple[str, float], list[float]] = {}
    spent = {family.name: (0.0, 0.0) for family in families}
    for fold in folds:
        for family in families:
            wall, cores = time.perf_counter(), time.process_time()
            fitted, judged = data.compute_features(family, fold.fit, fold.judge)
            truth = data.labels[fold.judge]
            classes = len(set(data.labels[fold.fit].tolist()))
            for value in family.values or (0.0,):
                classifier = fit(family.make(value, classes), fitted, data.labels[fold.fit])
                accuracy = float((classifier.predict(judged) == truth).mean())
                accuracies.setdefault((family.name, value), []).append(accuracy)
            before = spent[family.name]
            spent[family.name] = (
                before[0] + time.perf_counter() - wall,
                before[1] + time.process_time() - cores,
            )
    return [_chosen(family, accuracies, *spent[family.name]) for family in families]


def _chosen(
    family: Family,
    accuracies: dict[tuple[str, float], list[float]],
    seconds: float,
    core_seconds: float,
) -> TunedFamily:
    values = family.values or (0.0,)
    means = {value: float(np.mean(accuracies[family.name, value])) for value in values}
    best = max(values, key=lambda value: means[value])
    return TunedFamily(
        family=family,
        value=best,
        accuracy=means[best],
        spread=float(np.std(accuracies[family.name, best])),
        tried=tuple(means.items()),
        seconds=seconds,
        core_seconds=core_seconds,
    )


def out_of_fold_probabilities(
    tuned: TunedFamily, data: TrainingData, folds: Sequence[Fold], wanted: Indices
) -> Floats:
    """Return probabilities of training rows by classifiers that were not fitted on them.

    Equals scikit-learn's cross_val_predict, and accepts folds that do not cover all rows. Uses the
    first repeat of the folds.

    Returns:
        [rows, classes], classes in the order of `data.classes`.
    """
    family, order = tuned.family, {label: index for index, label in enumerate(data.classes)}
    found = np.zeros((len(wanted), len(order)))
    row_of = {int(index): row for row, index in enumerate(wanted)}
    for fold in (fold for fold in folds if fold.repeat == 0):
        judge = np.array([index for index in fold.judge if int(index) in row_of], dtype=np.int64)
        if not len(judge):
            continue
        fitted, judged = data.compute_features(family, fold.fit, judge)
        labels = data.labels[fold.fit]
        classifier = fit(make_final_classifier(tuned, labels), fitted, labels)
        columns = [order[label] for label in classifier.classes_]
        rows = [row_of[int(index)] for index in judge]
        found[np.ix_(rows, columns)] = classifier.predict_proba(judged)
    return found


def make_final_classifier(tuned: TunedFamily, labels: npt.NDArray[np.str_]) -> Any:
    """Return an unfitted classifier with probabilities, for a fit on these labels."""
    counts = np.unique(labels, return_counts=True)[1]
    return tuned.family.finish(tuned.family.make(tuned.value, len(counts)), int(counts.min()))
