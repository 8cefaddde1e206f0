"""Counting once gives exactly what fitting on each set of rows would give."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit, cross_val_predict
from sklearn.pipeline import Pipeline

from labelled import rows, texts
from packhorse.assess.families import FAMILIES
from packhorse.assess.features import NgramCounts, make_vectorizer
from packhorse.assess.splits import Fold, make_folds
from packhorse.assess.tuning import TrainingData, TunedFamily, out_of_fold_probabilities, tune


@pytest.mark.parametrize("count", [8, 40, 260])
def test_weights_are_those_of_a_fresh_fit(count: int) -> None:
    """260 rows are enough for rare pieces to be left out."""
    said = [text for text, _ in texts(300, learnable=True)] + ["", "Ünïcode — ß 漢字", "a"]
    chance = np.random.default_rng(count)
    fit = chance.permutation(len(said))[:count]
    other = np.setdiff1d(np.arange(len(said)), fit)
    ours, theirs = NgramCounts(said).compute_tfidf(fit, other)
    fresh = make_vectorizer(count)
    expected = fresh.fit_transform([said[place] for place in fit])
    asked = fresh.transform([said[place] for place in other])
    assert ours.shape == expected.shape
    assert (ours != expected).nnz == 0
    assert (theirs != asked).nnz == 0


def data(count: int, *, learnable: bool) -> tuple[TrainingData, list[str], list[Fold]]:
    pairs = texts(count, learnable=learnable)
    labels = np.array([label for _, label in pairs])
    said = [text for text, _ in pairs]
    return (
        TrainingData(labels, NgramCounts(said), None),
        said,
        make_folds(rows(pairs), grouped=False, seed=0),
    )


def test_tuning_is_a_grid_search_over_the_same_folds() -> None:
    known, said, cut = data(90, learnable=True)
    family = FAMILIES["tfidf-logistic"]
    (tuned,) = tune([family], known, [fold for fold in cut if fold.repeat == 0])
    place = np.zeros(90)
    for number, fold in enumerate(fold for fold in cut if fold.repeat == 0):
        place[fold.judge] = number
    pipeline = Pipeline([("features", make_vectorizer(72)), ("classifier", LogisticRegression())])
    pipeline.set_params(classifier__solver="liblinear", classifier__random_state=0)
    search = GridSearchCV(
        pipeline, {"classifier__C": list(family.values)}, cv=PredefinedSplit(place), refit=False
    ).fit(said, known.labels)
    assert [mean for _, mean in tuned.tried] == pytest.approx(
        search.cv_results_["mean_test_score"].tolist()
    )
    assert tuned.accuracy == max(mean for _, mean in tuned.tried)
    assert tuned.value == search.best_params_["classifier__C"]


def test_out_of_fold_probabilities_are_sklearns() -> None:
    known, said, cut = data(60, learnable=True)
    family = FAMILIES["tfidf-logistic"]
    tuned = TunedFamily(family, 10.0, 0.0, 0.0, (), 0.0, 0.0)
    wanted = np.array([3, 7, 8, 31, 59])
    found = out_of_fold_probabilities(tuned, known, cut, wanted)
    place = np.zeros(60)
    for number, fold in enumerate(fold for fold in cut if fold.repeat == 0):
        place[fold.judge] = number
    classifier = LogisticRegression(C=10.0, solver="liblinear", random_state=0, max_iter=2_000)
    pipeline = Pipeline([("features", make_vectorizer(48)), ("classifier", classifier)])
    expected = cross_val_predict(
        pipeline, said, known.labels, cv=PredefinedSplit(place), method="predict_proba"
    )
    assert found == pytest.approx(expected[wanted], abs=1e-6)


def test_what_cannot_be_learnt_is_not_learnt() -> None:
    known, _, cut = data(200, learnable=False)
    for tuned in tune(list(FAMILIES.values())[:5], known, cut):
        assert tuned.accuracy < 0.65


def test_every_family_learns_what_can_be_learnt() -> None:
    known, _, cut = data(200, learnable=True)
    families = [family for family in FAMILIES.values() if family.sees == "pieces"]
    assert [tuned.accuracy > 0.9 for tuned in tune(families, known, cut)] == [True] * 3


@pytest.mark.slow
def test_three_classes() -> None:
    pairs = [(f"{word} {number} {number * 7919}", word) for word in ("red", "green", "blue")
             for number in range(15)]  # fmt: skip
    known = TrainingData(
        np.array([label for _, label in pairs]), NgramCounts([text for text, _ in pairs]), None
    )
    cut = make_folds(rows(pairs), grouped=False, seed=0)
    families = [family for family in FAMILIES.values() if family.sees != "embeddings"]
    for tuned in tune(families, known, cut):
        found = out_of_fold_probabilities(tuned, known, cut, np.arange(45))
        assert found.shape == (45, 3)
        assert found.sum(axis=1) == pytest.approx(np.ones(45))
