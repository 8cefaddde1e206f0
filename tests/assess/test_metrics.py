"""Figures by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score

from packhorse.assess.metrics import Predictions, classification_metrics
from packhorse.evaluation.probabilities import brier_score, expected_calibration_error

CLASSES = ("a", "b", "c")
LABELS = st.lists(
    st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES)), min_size=1, max_size=60
)


@pytest.mark.slow
@given(LABELS)
def test_means_over_classes_are_sklearns(pairs: list[tuple[str, str]]) -> None:
    truth, given_labels = [list(each) for each in zip(*pairs, strict=True)]
    found = classification_metrics(Predictions(tuple(given_labels)), truth, CLASSES)
    known = sorted(set(truth) | set(given_labels))
    assert found.macro_f1.value == pytest.approx(
        f1_score(truth, given_labels, labels=known, average="macro", zero_division=0)
    )
    recalls = [
        sum(g == label for t, g in pairs if t == label) / truth.count(label)
        for label in sorted(set(truth))
    ]
    assert found.balanced_accuracy.value == pytest.approx(sum(recalls) / len(recalls))
    if set(given_labels) <= set(truth) and len(set(truth)) > 1:
        assert found.balanced_accuracy.value == pytest.approx(
            balanced_accuracy_score(truth, given_labels)
        )
    right = sum(t == g for t, g in pairs)
    assert found.accuracy.value == pytest.approx(right / len(pairs))
    for estimate in (found.accuracy, found.macro_f1, found.balanced_accuracy):
        if len(pairs) > 1:
            assert estimate.low is not None
            assert estimate.high is not None
            assert -1e-9 <= estimate.low <= estimate.high <= 1 + 1e-9


def test_answers_that_are_no_label_are_wrong_and_counted_apart() -> None:
    found = classification_metrics(
        Predictions(("a", None, None, "b"), None, failed=1), list("aabb"), ("a", "b")
    )
    assert found.accuracy.value == 0.5
    assert (found.invalid, found.failed, found.rows) == (2, 1, 4)
    assert found.valid_accuracy is not None
    assert found.valid_accuracy.value == 1.0
    assert found.balanced_accuracy.value == 0.5
    # F1 of each: one hit, one miss, nothing taken for it wrongly.
    assert found.macro_f1.value == pytest.approx(2 / 3)
    assert found.calibration_error is found.brier is None


@pytest.mark.slow
def test_the_bootstrap_covers_what_it_should() -> None:
    """Draws of rows by counts: the interval of balanced accuracy against one by rows."""
    chance = np.random.default_rng(0)
    truth = chance.choice(list("aab"), 200)
    said = np.where(chance.random(200) < 0.8, truth, "a")
    found = classification_metrics(Predictions(tuple(said.tolist())), truth.tolist(), ("a", "b"))
    values = []
    for _ in range(2_000):
        rows = chance.integers(0, 200, 200)
        values.append(balanced_accuracy_score(truth[rows], said[rows]))
    low, high = np.quantile(values, [0.025, 0.975])
    assert found.balanced_accuracy.low == pytest.approx(low, abs=0.01)
    assert found.balanced_accuracy.high == pytest.approx(high, abs=0.01)


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.65, 0.65, 0.65, 0.65])
    right = np.array([True, False, True, True, True, False])
    # |0.5 - 0.95| * 2/6 + |0.75 - 0.65| * 4/6
    assert expected_calibration_error(confidence, right) == pytest.approx(0.15 + 0.4 / 6)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.5, 1.0])
def test_calibration_error_at_the_edges_of_bins(value: float) -> None:
    confidence = np.full(10, value)
    right = np.arange(10) < 10 * value
    assert expected_calibration_error(confidence, right) == pytest.approx(0.0)


def test_brier_is_twice_sklearns_for_two_classes() -> None:
    chance = np.random.default_rng(1)
    second = chance.random(50)
    truth = chance.integers(0, 2, 50)
    ours = brier_score(np.stack([1 - second, second], axis=1), truth)
    assert ours == pytest.approx(2 * brier_score_loss(truth, second))


def test_brier_of_three_classes_by_hand() -> None:
    chances = np.array([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]])
    assert brier_score(chances, np.array([0, 2])) == pytest.approx((0.38 + 2.0) / 2)


def test_of_some_rows() -> None:
    said = Predictions(("a", None, "b"), np.array([[1.0, 0], [0.5, 0.5], [0, 1]]))
    some = said.select([2, 0])
    assert some.labels == ("b", "a")
    assert some.probabilities is not None
    assert some.probabilities.tolist() == [[0, 1], [1, 0]]
