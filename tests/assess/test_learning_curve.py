"""Labels needed: planted curves give the planted answer, with an interval that holds it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from labelled import WORDS
from packhorse.assess.families import FAMILIES
from packhorse.assess.features import NgramCounts
from packhorse.assess.learning_curve import (
    SMALLEST,
    CurvePoint,
    draw_rows,
    first_crossing,
    labels_needed,
    learning_curve,
    training_sizes,
)
from packhorse.assess.tuning import TrainingData, TunedFamily

PLACES = [8.0, 16.0, 32.0, 64.0]


@pytest.mark.parametrize(
    ("values", "level", "expected"),
    [
        ([0.5, 0.6, 0.7, 0.8], 0.6, 16.0),
        ([0.5, 0.6, 0.7, 0.8], 0.65, 16 * 2**0.5),
        ([0.5, 0.6, 0.7, 0.8], 0.5, 0.0),
        ([0.5, 0.6, 0.7, 0.8], 0.4, 0.0),
        ([0.5, 0.6, 0.7, 0.8], 0.81, None),
        ([0.5, 0.7, 0.6, 0.8], 0.65, 8 * 2**0.75),
        ([0.5, 0.5, 0.5, 0.9], 0.5001, 32 * 2**0.00025),
    ],
)
def test_crossing(values: list[float], level: float, expected: float | None) -> None:
    found = first_crossing(PLACES, values, level)
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-6))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((100, 40), [8, 16, 32, 100]),
        ((100, 90, 5), [8, 16, 32, 64, 100]),
        ((5, 5), [5]),
        ((16, 16), [8, 16]),
    ],
)
def test_sizes(counts: tuple[int, ...], expected: list[int]) -> None:
    labels = np.array([str(place) for place, count in enumerate(counts) for _ in range(count)])
    assert training_sizes(labels) == expected


def test_draws_are_of_each_class_and_repeatable() -> None:
    labels = np.array(["a"] * 50 + ["b"] * 5)
    places = draw_rows(labels, 8, 3)
    assert [labels[places].tolist().count(label) for label in "ab"] == [8, 5]
    assert places.tolist() == draw_rows(labels, 8, 3).tolist()
    assert places.tolist() != draw_rows(labels, 8, 4).tolist()


def points(values: list[float]) -> list[CurvePoint]:
    return [
        CurvePoint(int(place), int(place) * 2, (value,), value, value, value)
        for place, value in zip(PLACES, values, strict=True)
    ]


def test_an_answer_that_half_of_the_resamples_reach() -> None:
    means = np.array([[0.5, 0.6, 0.7, 0.8, 0.7]] * 500 + [[0.5, 0.6, 0.65, 0.68, 0.7]] * 500)
    found = labels_needed(points([0.5, 0.6, 0.7, 0.8]), 0.7, means)
    assert found.value == pytest.approx(32.0)
    assert found.low == pytest.approx(32.0)
    assert found.high is None
    assert found.reached == 0.5


def test_a_level_that_is_not_reached() -> None:
    means = np.array([[0.5, 0.6, 0.7, 0.8, 0.9]] * 100)
    found = labels_needed(points([0.5, 0.6, 0.7, 0.8]), 0.9, means)
    assert (found.value, found.low, found.high, found.reached) == (None, None, None, 0.0)


def of_many_signs(count: int) -> list[tuple[str, str]]:
    """Two of 60 words tell a text's label: a few texts do not show all of them."""
    chance = random.Random(3)
    signs = {
        label: ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(60)]
        for label in ("a", "b")
    }
    made = []
    for _ in range(count):
        label = chance.choice("ab")
        words = chance.choices(WORDS, k=10) + chance.choices(signs[label], k=2)
        made.append((" ".join(words), label))
    return made


def test_a_real_curve_rises_to_what_can_be_learnt() -> None:
    pairs = of_many_signs(420)
    labels = np.array([label for _, label in pairs])
    data = TrainingData(labels, NgramCounts([text for text, _ in pairs]), None)
    train, test = np.arange(300), np.arange(300, 420)
    tuned = TunedFamily(FAMILIES["tfidf-logistic"], 10.0, 0.0, 0.0, (), 0.0, 0.0)
    model_correct = np.random.default_rng(0).random(120) < 0.9
    curve = learning_curve(tuned, data, test, labels[test], model_correct, train, seed=0)
    first, last = curve.points[0], curve.points[-1]
    assert (first.per_class, first.rows) == (SMALLEST, 2 * SMALLEST)
    assert last.rows == 300
    assert len(first.accuracies) == 5
    assert len(last.accuracies) == 1
    assert first.mean < 0.95 < last.mean
    for point in curve.points:
        assert point.low <= point.mean <= point.high
    assert curve.level == model_correct.mean()
    assert curve.needed.low is not None
    assert curve.needed.value is not None
    assert curve.needed.high is not None
    assert curve.needed.low <= curve.needed.value <= curve.needed.high < 150
