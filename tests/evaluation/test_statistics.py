"""Values by hand, and against scipy where it knows the same number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from packhorse.evaluation.statistics import (
    bootstrap_mean,
    bootstrap_ratio,
    knee,
    mcnemar_exact,
    median_interval,
    paired_bootstrap,
    pareto_front,
    quantile,
    wilson_interval,
)
from packhorse.evaluation.ties import compare_repeats

finite = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, None),
        ([7.0], 0.95, 7.0),
        ([1, 2, 3, 4], 0.5, 2.5),
        ([4, 1, 3, 2], 0.25, 1.75),
        ([1, 2, 3, 4, 5], 0.95, 4.8),
        ([1, 1, 1], 0.99, 1.0),
    ],
)
def test_quantile_interpolates(values: list[float], share: float, expected: float | None) -> None:
    assert quantile(values, share) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "value", "low", "high", "coverage", "rule"),
    [
        ([3.0], 3.0, None, None, 0.0, "one value, no interval"),
        ([1, 2], 1.5, 1, 2, 0.5, "minimum..maximum"),
        ([9, 1, 5], 5, 1, 9, 0.75, "minimum..maximum"),
        ([1, 2, 3, 4, 5], 3, 1, 5, 0.9375, "minimum..maximum"),
        ([1, 2, 3, 4, 5, 6], 3.5, 1, 6, 0.96875, "order statistics"),
        (range(1, 21), 10.5, 6, 15, 0.958611, "order statistics"),  # tables: n = 20, ranks 6, 15
    ],
)
def test_median_interval(
    values: list[float],
    value: float,
    low: float | None,
    high: float | None,
    coverage: float,
    rule: str,
) -> None:
    estimate = median_interval(values)
    assert estimate is not None
    assert (estimate.value, estimate.low, estimate.high) == (value, low, high)
    assert estimate.coverage == pytest.approx(coverage, abs=1e-6)
    assert (estimate.rule, estimate.count) == (rule, len(values))


@pytest.mark.parametrize("count", [6, 10, 33, 200])
def test_median_interval_is_the_narrowest_that_covers(count: int) -> None:
    estimate = median_interval(range(count))
    assert estimate is not None
    assert estimate.low is not None
    rank = int(estimate.low)
    assert estimate.coverage == pytest.approx(1 - 2 * stats.binom.cdf(rank, count, 0.5))
    assert 1 - 2 * stats.binom.cdf(rank + 1, count, 0.5) < 0.95 <= estimate.coverage


def test_nothing_to_estimate() -> None:
    assert median_interval([]) is None
    assert bootstrap_mean([]) is None
    assert paired_bootstrap([], []) is None
    assert wilson_interval(0, 0) is None
    assert bootstrap_ratio([1.0, 2.0], [0.0, 0.0]) is None


def test_one_row_has_no_interval() -> None:
    estimate = bootstrap_mean([0.25])
    assert estimate is not None
    assert (estimate.value, estimate.low, estimate.high, estimate.count) == (0.25, None, None, 1)


def test_bootstrap_agrees_with_scipy() -> None:
    sample = np.random.default_rng(1).lognormal(size=80)
    ours = bootstrap_mean(sample)
    assert ours is not None
    theirs = stats.bootstrap(
        (sample,), np.mean, n_resamples=20_000, method="percentile", rng=2
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, rel=0.03)
    assert ours.high == pytest.approx(theirs.high, rel=0.03)
    assert ours.value == pytest.approx(sample.mean())


def test_bootstrap_is_seeded() -> None:
    sample = list(range(30))
    assert bootstrap_mean(sample, seed=5) == bootstrap_mean(sample, seed=5)
    assert bootstrap_mean(sample, seed=5) != bootstrap_mean(sample, seed=6)


def test_bootstrap_of_many_rows_goes_piece_by_piece() -> None:
    sample = np.random.default_rng(3).normal(10.0, 2.0, size=40_000)
    estimate = bootstrap_mean(sample)
    assert estimate is not None
    assert estimate.low == pytest.approx(sample.mean() - 1.96 * 2 / 200, abs=0.002)
    assert estimate.high == pytest.approx(sample.mean() + 1.96 * 2 / 200, abs=0.002)


@given(st.lists(finite, min_size=2, max_size=30))
def test_bootstrap_interval_stays_inside_the_sample(values: list[float]) -> None:
    estimate = bootstrap_mean(values)
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= estimate.low <= estimate.high <= max(values) + slack


def test_ratio_is_of_sums_and_not_a_mean_of_ratios() -> None:
    estimate = bootstrap_ratio([1, 30], [1, 10])
    assert estimate is not None
    assert estimate.value == pytest.approx(31 / 11)
    assert (estimate.low, estimate.high) == (1.0, 3.0)


def test_pairing_removes_what_rows_share() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, size=200)
    left, right = hard + 1 + rng.normal(0, 0.1, 200), hard + rng.normal(0, 0.1, 200)
    paired = paired_bootstrap(left, right)
    assert paired is not None
    assert paired.low is not None
    assert paired.high is not None
    assert 0.95 < paired.low < 1.0 < paired.high < 1.05


@pytest.mark.parametrize(
    ("successes", "count"), [(0, 1), (1, 1), (0, 64), (64, 64), (7, 20), (1, 3)]
)
def test_wilson_agrees_with_scipy(successes: int, count: int) -> None:
    ours = wilson_interval(successes, count)
    theirs = stats.binomtest(successes, count).proportion_ci(method="wilson")
    assert ours is not None
    assert ours.low == pytest.approx(theirs.low)
    assert ours.high == pytest.approx(theirs.high)


def test_wilson_by_hand() -> None:
    estimate = wilson_interval(8, 10)
    assert estimate is not None
    # centre (0.8 + 0.19207) / 1.38415, half width 1.95996 sqrt(0.016 + 0.0096036) / 1.38415
    assert estimate.low == pytest.approx(0.71674 - 0.22657, abs=1e-4)
    assert estimate.high == pytest.approx(0.71674 + 0.22657, abs=1e-4)


@pytest.mark.parametrize(
    ("lost", "won", "expected"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (3, 3, 1.0), (8, 2, 0.109375), (2, 8, 0.109375)],
)
def test_mcnemar_by_hand(lost: int, won: int, expected: float) -> None:
    assert mcnemar_exact(lost, won) == pytest.approx(expected)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_mcnemar_agrees_with_scipy(lost: int, won: int) -> None:
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar_exact(lost, won) == pytest.approx(expected, rel=1e-8, abs=1e-290)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(1, 1)], [0]),
        ([(1, 1), (2, 2)], [1]),
        ([(1, 2), (2, 1)], [0, 1]),
        ([(1, 2), (1, 2)], [0, 1]),
        ([(1, 2), (1, 3), (1, 1)], [1]),
        ([(5, 0.1), (4, 0.9), (3, 0.8), (1, 1.0)], [0, 1, 3]),
        ([(2, 1, -4), (2, 1, -3), (1, 1, -1)], [1, 2]),  # memory as a third axis, negated
    ],
)
def test_pareto_front(points: list[tuple[float, ...]], expected: list[int]) -> None:
    assert pareto_front(points) == expected


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_every_point_off_the_front_is_beaten_by_one_on_it(points: list[tuple[int, int]]) -> None:
    front = pareto_front(points)
    assert front
    for index, point in enumerate(points):
        beaten = any(
            points[other] != point and points[other] >= point and points[other][1] >= point[1]
            for other in front
        )
        assert beaten != (index in front)


@pytest.mark.parametrize(
    ("throughput", "agreement", "expected"),
    [
        ([], [], None),
        ([1], [1], None),
        ([1, 2], [1, 0.5], None),
        ([1, 10, 100], [1.0, 0.5, 0.0], None),  # on the chord: no knee
        ([1, 10, 100], [1.0, 0.2, 0.0], None),  # below it
        ([1, 10, 100], [1.0, 0.9, 0.0], 1),
        ([100, 50, 20, 1], [0.1, 0.9, 0.95, 1.0], 1),
        ([1, 2, 3], [1.0, 1.0, 1.0], None),
        ([0, 2, 3], [1.0, 0.9, 0.1], None),
    ],
)
def test_knee(throughput: list[float], agreement: list[float], expected: int | None) -> None:
    assert knee(throughput, agreement) == expected


def test_knee_does_not_depend_on_the_unit() -> None:
    rates, agreement = [3.0, 40.0, 60.0, 200.0], [1.0, 0.8, 0.7, 0.1]
    # x + y of the two inner points, log and scaled: 0.617 + 0.778 and 0.713 + 0.667
    assert knee(rates, agreement) == knee([rate * 3600 for rate in rates], agreement) == 1


@pytest.mark.parametrize(
    ("left", "right", "tie"),
    [
        ([10.0], [10.0], True),
        ([10.0], [12.0], True),  # one round: 30 % is the noise of a shared machine
        ([10.0], [20.0], False),
        ([10.0, 11.0], [12.5, 16.0], True),
        ([10.0, 11.0], [30.0, 22.0], False),
        ([10.0, 10.1, 9.9], [10.1, 9.9, 10.0], True),
        ([10.0, 10.1, 9.9], [12.0, 12.2, 11.9], False),
        ([10.0, 20.0, 30.0], [11.0, 22.0, 33.0], False),  # drift is shared by both
        ([10.0, 10.0, 10.0], [10.1, 10.1, 10.1], True),  # certain, and below 2 %
        ([10.0, 14.0, 9.0], [12.0, 11.0, 13.0], True),
        ([None, 10.0], [10.0, None], True),
        ([0.0], [10.0], True),
        ([], [], True),
    ],
)
def test_ties(left: list[float | None], right: list[float | None], tie: bool) -> None:
    assert compare_repeats(left, right).tie is tie
    assert compare_repeats(right, left).tie is tie


@pytest.mark.parametrize("rounds", [3, 5, 12, 60])
def test_ratio_interval_agrees_with_a_paired_t_test(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    left, right = rng.lognormal(1.0, 0.2, rounds), rng.lognormal(1.2, 0.2, rounds)
    expected = stats.ttest_rel(np.log(left), np.log(right)).confidence_interval()
    ours = compare_repeats(left.tolist(), right.tolist())
    assert ours.rounds == rounds
    assert ours.low == pytest.approx(math.exp(expected.low), rel=1e-4)
    assert ours.high == pytest.approx(math.exp(expected.high), rel=1e-4)


def test_false_differences_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(0.0, 0.1, size=(1000, 2, 3))
    found = sum(not compare_repeats(left, right).tie for left, right in values.tolist())
    assert 20 <= found <= 75  # 5 % of 1,000, less those below 2 %
