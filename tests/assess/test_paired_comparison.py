"""Paired differences: Tango's interval against an independent computation, and its promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from packhorse.assess.paired_comparison import (
    compare_pair,
    rows_needed,
    tango_interval,
    tango_statistic,
)

COUNTS = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 200)).map(
    lambda counts: (counts[0], counts[1], counts[0] + counts[1] + counts[2])
)


def by_likelihood(only_left: int, only_right: int, rows: int, difference: float) -> float:
    """The score statistic with the share found by maximising the likelihood numerically."""
    b, c, n, d = only_left, only_right, rows, difference

    def loss(q: float) -> float:
        chances = np.maximum([q + d, q, 1 - 2 * q - d], 1e-300)
        return -float(np.dot([b, c, n - b - c], np.log(chances)))

    low, high = max(0.0, -d) + 1e-12, (1 - d) / 2 - 1e-12
    share = optimize.minimize_scalar(
        loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    return float((b - c - n * d) / np.sqrt(n * (2 * share + d * (1 - d))))


@pytest.mark.parametrize("counts", [(12, 2, 50), (1, 0, 44), (3, 5, 30), (40, 41, 500)])
@pytest.mark.parametrize("difference", [-0.3, -0.05, 0.0, 0.02, 0.2])
def test_the_statistic_is_the_likelihoods(counts: tuple[int, int, int], difference: float) -> None:
    assert tango_statistic(*counts, difference) == pytest.approx(
        by_likelihood(*counts, difference), abs=1e-5
    )


@given(COUNTS)
def test_the_ends_are_where_the_test_would_just_refuse(counts: tuple[int, int, int]) -> None:
    found = tango_interval(*counts)
    assert found.low is not None
    assert found.high is not None
    assert -1 <= found.low <= found.value <= found.high <= 1
    critical = stats.norm.ppf(0.975)
    for end, sign in ((found.low, 1), (found.high, -1)):
        if -1 < end < 1:
            assert tango_statistic(*counts, end) == pytest.approx(sign * critical, abs=1e-4)


@given(COUNTS)
def test_turning_the_pair_round_turns_the_interval_round(counts: tuple[int, int, int]) -> None:
    one, other = tango_interval(*counts), tango_interval(counts[1], counts[0], counts[2])
    assert one.low is not None
    assert other.high is not None
    assert one.low == pytest.approx(-other.high, abs=1e-9)


def test_by_hand() -> None:
    """Nobody differs on 100 rows: z^2 / (n + z^2); so 380 rows are needed for a margin of 1 %."""
    z2 = stats.norm.ppf(0.975) ** 2
    found = tango_interval(0, 0, 100)
    assert (found.low, found.high) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)))
    assert tango_interval(0, 0, 379).low < -0.01 < (tango_interval(0, 0, 381).low or 0)  # type: ignore[operator]


def test_the_interval_covers_as_often_as_it_says() -> None:
    chance = np.random.default_rng(0)
    true, rows = (0.08, 0.03), 120
    draws = chance.multinomial(rows, [*true, 1 - sum(true)], size=1_500)
    held = 0
    for b, c, _ in draws:
        found = tango_interval(int(b), int(c), rows)
        held += (found.low or -1) <= true[0] - true[1] <= (found.high or 1)
    assert 0.93 <= held / 1_500 <= 0.975


def test_pair_counts_and_agrees_with_scipy() -> None:
    left = [True] * 30 + [True] * 9 + [False] * 2 + [False] * 9
    right = [True] * 30 + [False] * 9 + [True] * 2 + [False] * 9
    found = compare_pair("one", "other", left, right)
    assert (found.rows, found.left_only, found.right_only) == (50, 9, 2)
    assert found.difference.value == pytest.approx(0.14)
    assert found.mcnemar_p == pytest.approx(stats.binomtest(2, 11).pvalue)
    assert found.bootstrap.value == pytest.approx(0.14)
    assert found.is_superior
    assert found.is_non_inferior(0.01)
    assert not found.is_inferior(0.01)
    turned = compare_pair("other", "one", right, left)
    assert turned.is_inferior(0.01)
    assert not turned.is_non_inferior(0.01)


def test_rows_needed_have_the_promised_power() -> None:
    """Simulated: of so many rows, four in five contests show non-inferiority."""
    needed = rows_needed(20, 20, 1000, 0.02)
    assert needed is not None
    chance = np.random.default_rng(1)
    share = 41 / 1002 / 2
    draws = chance.multinomial(needed, [share, share, 1 - 2 * share], size=600)
    shown = [(tango_interval(int(b), int(c), needed).low or -1) > -0.02 for b, c, _ in draws]
    assert 0.74 <= np.mean(shown) <= 0.86


def test_rows_needed_to_show_inferiority_have_it_too() -> None:
    needed = rows_needed(20, 60, 1000, 0.02)
    assert needed is not None
    share = np.array([20, 60]) * 81 / 1002 / 80
    draws = np.random.default_rng(2).multinomial(needed, [*share, 1 - share.sum()], size=600)
    shown = [(tango_interval(int(b), int(c), needed).high or 1) < -0.02 for b, c, _ in draws]
    assert 0.74 <= np.mean(shown) <= 0.86


@pytest.mark.parametrize(
    ("counts", "margin", "possible"),
    [((0, 2, 100), 0.01, True), ((0, 1, 100), 0.01, False), ((0, 0, 5), 0.01, True)],
)
def test_rows_needed_where_the_difference_is_the_margin(
    counts: tuple[int, int, int], margin: float, possible: bool
) -> None:
    assert (rows_needed(*counts, margin) is not None) is possible
