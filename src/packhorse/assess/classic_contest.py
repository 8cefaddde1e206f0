"""Tune and fit the classic contestants on the training part and predict the test part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.assess.classifiers import StageCallback, load_encoder
from packhorse.assess.contestants import ContestantResult, Kind
from packhorse.assess.families import FAMILIES, Family, fit
from packhorse.assess.features import NgramCounts, make_vectorizer
from packhorse.assess.metrics import Predictions
from packhorse.assess.rows import LabelledRow
from packhorse.assess.splits import Fold, Indices, Split
from packhorse.assess.tuning import TrainingData, TunedFamily, make_final_classifier, tune


@dataclass(frozen=True, slots=True)
class Classic:
    """Features of all rows.

    Attributes:
        data: all rows, those of the training part first.
        train: indices of the training rows.
        test: indices of the test rows.
        preparing: (seconds, core-seconds) spent on n-grams and embeddings of the training rows.
    """

    data: TrainingData
    train: Indices
    test: Indices
    folds: tuple[Fold, ...]
    preparing: dict[str, tuple[float, float]]


def prepare_features(
    parts: Split, folds: Sequence[Fold], embeddings: str | None, report: StageCallback
) -> Classic:
    """Count n-grams and compute embeddings of all rows; each row is independent of the others."""
    rows = (*parts.train, *parts.test)
    texts = [row.text for row in rows]
    count = len(parts.train)
    preparing = {"nothing": (0.0, 0.0)}
    report(f"counting words and characters of {len(rows):,} texts")
    started = time.perf_counter(), time.process_time()
    pieces = NgramCounts(texts)
    preparing["pieces"] = _time_since(started, count / len(rows))
    vectors = None
    if embeddings is not None:
        encoder = load_encoder(embeddings, report)
        report(f"computing sentence embeddings of {len(rows):,} texts")
        started = time.perf_counter(), time.process_time()
        vectors = encoder.embed(texts)
        preparing["embeddings"] = _time_since(started, count / len(rows))
    data = TrainingData(np.array([row.label for row in rows]), pieces, vectors)
    indices = np.arange(len(rows))
    return Classic(data, indices[:count], indices[count:], tuple(folds), preparing)


def run_classic_contestants(
    classic: Classic, train: Sequence[LabelledRow], report: StageCallback
) -> list[ContestantResult]:
    """Tune, fit and evaluate every family whose features are available."""
    families = [
        family
        for family in FAMILIES.values()
        if family.sees != "embeddings" or classic.data.embeddings is not None
    ]
    report(f"tuning {len(families)} classic contestants on {len(classic.folds)} folds")
    tuned = tune(families, classic.data, classic.folds)
    started = time.perf_counter(), time.process_time()
    union = make_vectorizer(len(train)).fit([row.text for row in train])
    fitting = _time_since(started, 1.0)
    return [_fit_and_predict(each, classic, union, fitting) for each in tuned]


def _fit_and_predict(
    tuned: TunedFamily, classic: Classic, union: Any, fitting: tuple[float, float]
) -> ContestantResult:
    from sklearn.pipeline import Pipeline

    family, data = tuned.family, classic.data
    labels = data.labels[classic.train]
    started = time.perf_counter(), time.process_time()
    fitted, asked = data.compute_features(family, classic.train, classic.test)
    classifier = fit(make_final_classifier(tuned, labels), fitted, labels)
    spent = _time_since(started, 1.0)
    probabilities = np.asarray(classifier.predict_proba(asked), dtype=np.float64)
    # Labels follow from the probabilities, also for the calibrated SVM.
    predicted = tuple(
        str(label) for label in np.asarray(classifier.classes_)[probabilities.argmax(axis=1)]
    )
    shared = [classic.preparing[family.sees]]
    if family.sees == "pieces":
        shared.append(fitting)
        classifier = Pipeline([("features", union), ("classifier", classifier)])
    kind: Kind = "dummy" if family.sees == "nothing" else "classic"
    return ContestantResult(
        name=family.name,
        title=family.title,
        kind=kind,
        predictions=Predictions(predicted, probabilities),
        indices=tuple(range(len(classic.test))),
        validated=tuned.accuracy,
        validated_on=f"{len(classic.folds)} folds of the training part",
        settings=_settings(tuned, family),
        tuned=tuned,
        fitted=classifier,
        once_seconds=tuned.seconds + spent[0] + sum(each[0] for each in shared),
        once_core_seconds=tuned.core_seconds + spent[1] + sum(each[1] for each in shared),
    )


def _settings(tuned: TunedFamily, family: Family) -> dict[str, str]:
    if not family.values:
        return {}
    tried = ", ".join(f"{value:g}: {accuracy:.3f}" for value, accuracy in tuned.tried)
    return {family.parameter: f"{tuned.value:g}", "accuracy by setting": tried}


def _time_since(started: tuple[float, float], share: float) -> tuple[float, float]:
    """Return elapsed (seconds, core-seconds) times a share."""
    seconds, cores = time.perf_counter() - started[0], time.process_time() - started[1]
    return seconds * share, cores * share
