"""The cascade: its ends are each contestant alone, and the threshold is the cheapest good one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.assess.cascade import (
    MAX_POINTS,
    apply_threshold,
    candidate_thresholds,
    choose_point,
    wilson_accuracy,
)
from packhorse.assess.metrics import Predictions

CHANCES = st.lists(st.floats(0.5, 1.0), min_size=1, max_size=200)


def classic(confidence: list[float], labels: str) -> Predictions:
    second = np.array(confidence)
    return Predictions(tuple(labels), np.stack([1 - second, second], axis=1))


@given(CHANCES)
def test_the_ends_are_each_alone_and_shares_rise(confidence: list[float]) -> None:
    count = len(confidence)
    own = classic(confidence, "a" * count)
    model = Predictions(tuple("b" * count))
    found = [
        apply_threshold(own, model, threshold)
        for threshold in candidate_thresholds(np.array(confidence))
    ]
    assert found[0][0].labels == own.labels
    assert found[-1][0].labels == model.labels
    shares = [to_model.mean() for _, to_model in found]
    assert shares == sorted(shares)
    assert len(found) <= MAX_POINTS + 2


def test_the_unsure_rows_go_to_the_model() -> None:
    own = classic([0.9, 0.6, 0.7], "aab")
    said, to_model = apply_threshold(own, Predictions(("b", None, "b")), 0.65)
    assert said.labels == ("a", None, "b")
    assert to_model.tolist() == [False, True, False]
    assert wilson_accuracy(said, ["a", "a", "b"]).value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("accuracies", "shares", "tolerance", "expected"),
    [
        ([0.9, 0.95, 0.95, 0.8], [0.0, 0.2, 0.5, 1.0], 0.01, 1),
        ([0.94, 0.95, 0.95, 0.8], [0.0, 0.2, 0.5, 1.0], 0.011, 0),
        ([0.5, 0.6, 0.7, 0.8], [0.0, 0.2, 0.5, 1.0], 0.01, 3),
        ([0.9, 0.9], [0.0, 0.0], 0.0, 0),
    ],
)
def test_the_chosen_point(
    accuracies: list[float], shares: list[float], tolerance: float, expected: int
) -> None:
    assert choose_point(accuracies, shares, tolerance) == expected
