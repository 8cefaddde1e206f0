"""The classic contestants: features, classifier, and the settings that are tried."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Sees = Literal["nothing", "pieces", "embeddings"]

MAX_ITERATIONS = 2_000


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of classic classifier.

    Attributes:
        name: in files; title: for display.
        sees: its features.
        parameter: name of the tuned setting; values: none if nothing is tuned.
        make: a classifier for (value, classes).
        finish: adds probabilities to a classifier that has none.
    """

    name: str
    title: str
    sees: Sees
    parameter: str
    values: tuple[float, ...]
    make: Callable[[float, int], Any]
    finish: Callable[[Any, int], Any] = lambda classifier, smallest_class: classifier


def fit(classifier: Any, seen: Any, labels: Any) -> Any:
    """Fit the classifier; one that reaches MAX_ITERATIONS is used as it is."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(seen, labels)


def _majority(value: float, classes: int) -> Any:
    from sklearn.dummy import DummyClassifier

    return DummyClassifier(strategy="most_frequent")


def _stratified(value: float, classes: int) -> Any:
    from sklearn.dummy import DummyClassifier

    return DummyClassifier(strategy="stratified", random_state=0)


def _logistic(value: float, classes: int) -> Any:
    """Return one-vs-rest liblinear, many times faster than lbfgs on this many features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    one = LogisticRegression(C=value, solver="liblinear", max_iter=MAX_ITERATIONS, random_state=0)
    return one if classes == 2 else OneVsRestClassifier(one)


def _svm(value: float, classes: int) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(C=value, max_iter=MAX_ITERATIONS, random_state=0)


def _with_probabilities(machine: Any, smallest_class: int) -> Any:
    """Calibrate by Platt's sigmoid on out-of-fold decisions; needs two rows of each class."""
    from sklearn.calibration import CalibratedClassifierCV

    return CalibratedClassifierCV(machine, cv=min(3, smallest_class), ensemble=False)


def _bayes(value: float, classes: int) -> Any:
    from sklearn.naive_bayes import ComplementNB

    return ComplementNB(alpha=value)


MAJORITY = "majority"
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(MAJORITY, "always the most frequent label", "nothing", "", (), _majority),
        Family("stratified", "labels at random, in proportion", "nothing", "", (), _stratified),
        Family(
            "tfidf-logistic", "TF-IDF + logistic regression", "pieces", "C", (1, 10, 100), _logistic
        ),
        Family(
            "tfidf-svm",
            "TF-IDF + linear SVM",
            "pieces",
            "C",
            (0.1, 1, 10),
            _svm,
            _with_probabilities,
        ),
        Family(
            "tfidf-bayes",
            "TF-IDF + complement naive Bayes",
            "pieces",
            "alpha",
            (0.01, 0.1, 1),
            _bayes,
        ),
        Family(
            "embeddings-logistic",
            "sentence embeddings + logistic regression",
            "embeddings",
            "C",
            (1, 10, 100),
            _logistic,
        ),
    )
}
