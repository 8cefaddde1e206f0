"""Break-even and a month's costs, by hand."""

from __future__ import annotations

import pytest

from packhorse.assess.economy import Offer, compute_economy

CLASSIC = Offer("svm", "SVM", core_seconds=2.0, once=100.0, labels=500)
MODEL = Offer("choice", "model", core_seconds=1002.0, once=0.0, labels=0)


def test_break_even_by_core_time() -> None:
    found = compute_economy(CLASSIC, MODEL, (), None, None, None)
    assert found.saved_core_seconds == pytest.approx(1.0)
    assert found.rows == pytest.approx(100.0)
    assert (found.after_months, found.rows_with_labels, found.months) == (None, None, ())


def test_break_even_with_labels_bought() -> None:
    """100 core-seconds at 0.036 an hour are 0.001, 500 labels at 0.02 are 10, a row saves 1e-5."""
    found = compute_economy(CLASSIC, MODEL, (), 50_000, 0.036, 0.02)
    assert found.rows_with_labels == pytest.approx((0.001 + 10) / 0.00001)
    assert found.after_months == pytest.approx(100 / 50_000)
    assert found.after_months_with_labels == pytest.approx(1_000_100 / 50_000)
    classic, model = found.months
    assert classic.core_hours == pytest.approx(50_000 * 0.002 / 3600)
    assert model.core_hours == pytest.approx(50_000 * 1.002 / 3600)
    assert model.cores == pytest.approx(50_000 * 1.002 / (30 * 86_400))
    assert model.money == pytest.approx(50_000 * 1.002 / 3600 * 0.036)


def test_a_model_that_costs_no_more_is_never_paid_back() -> None:
    found = compute_economy(CLASSIC, Offer("m", "m", 2.0, 0.0, 0), (), 1000, 0.1, 0.1)
    assert (found.rows, found.rows_with_labels, found.after_months) == (None, None, None)
