"""Quantiles, confidence intervals, tests, the Pareto front and its knee.

All functions are pure. One value gets no interval, since it does not show its spread. Bootstraps
are seeded, so that a report can be reproduced. scipy.stats takes half a second to import and is
imported on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from packhorse.profiling import run_metrics

Values = Sequence[float] | npt.NDArray[np.floating[Any]]
FloatArray = npt.NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2_000
_INDICES_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its confidence interval.

    Attributes:
        value, low, high: in the unit of the measure; low and high are None below two values.
        count: number of values it is computed from.
        rule: how the interval was computed, for reports.
        coverage: probability that such an interval contains the true value if it is known, else
            LEVEL.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    rule: str
    coverage: float = LEVEL

    def mapped(self, increasing: Callable[[float], float]) -> Estimate:
        """Return value and interval after an increasing function."""
        low, high = (
            None if end is None else float(increasing(end)) for end in (self.low, self.high)
        )
        return replace(self, value=float(increasing(self.value)), low=low, high=high)


def quantile(values: Values, share: float) -> float | None:
    """Interpolate linearly between order statistics at position share x (n - 1), counted from 0.

    Returns None for no values. Source: Hyndman and Fan 1996, type 7 (numpy's and R's default).
    """
    return run_metrics.quantile(sorted(values), share)


def median_interval(values: Values, level: float = LEVEL) -> Estimate | None:
    """Return the median and the narrowest symmetric pair of order statistics covering `level`.

    [x(k), x(n+1-k)] holds the median of any continuous distribution with probability
    1 - 2 P(B <= k - 1), B ~ Binomial(n, 1/2). Below 6 values no pair reaches 95 %: then it is
    minimum..maximum, whose coverage is 1 - 2^(1-n) (3 values: 75 %), as `rule` says.
    Returns None for no values. Source: Thompson 1936; Hahn and Meeker 1991, section 5.2.
    """
    count = len(values)
    if count == 0:
        return None
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    value = float(np.median(ordered))
    if count == 1:
        return Estimate(value, None, None, 1, "one value, no interval", 0.0)
    outside = 2.0 * special.bdtr(np.arange(count), count, 0.5)
    ranks = np.flatnonzero(outside <= 1.0 - level)
    rank = int(ranks[-1]) if len(ranks) else 0
    rule = "order statistics" if len(ranks) else "minimum..maximum"
    low, high = float(ordered[rank]), float(ordered[count - 1 - rank])
    return Estimate(value, low, high, count, rule, 1.0 - float(outside[rank]))


def bootstrap_mean(values: Values, *, seed: int = 0, level: float = LEVEL) -> Estimate | None:
    """Return the mean over rows with a percentile bootstrap interval of RESAMPLES resamples.

    Rows are resampled. Returns None for no values. Identical values give an interval of
    width 0, which says the sample has no spread, not that the population has none; for shares of
    yes and no use `wilson_interval`. Source: Efron 1979; Efron and Tibshirani 1993, chapter 13.
    """
    ones = np.ones(len(values))
    return bootstrap_ratio(values, ones, seed=seed, level=level)


def bootstrap_ratio(
    numerators: Values, denominators: Values, *, seed: int = 0, level: float = LEVEL
) -> Estimate | None:
    """Return sum(numerators) / sum(denominators) over rows, with a percentile bootstrap interval.

    Numerator and denominator of a row are drawn together. Denominators are >= 0; returns None if
    they sum to 0. A resample whose denominators sum to 0 is left out, which
    scipy.stats.bootstrap does not support.
    """

    above = np.asarray(numerators, dtype=np.float64)
    below = np.asarray(denominators, dtype=np.float64)
    count = len(above)
    assert len(below) == count, "one denominator per row"
    assert count == 0 or below.min() >= 0, "denominators are counts"
    if count == 0 or below.sum() == 0:
        return None
    value = float(above.sum() / below.sum())
    if count == 1:
        return Estimate(value, None, None, 1, "one row, no interval", 0.0)

    def ratio(rows: npt.NDArray[np.int64]) -> FloatArray:
        sums = below[rows].sum(axis=1)
        usable = sums > 0
        return np.asarray(above[rows].sum(axis=1)[usable] / sums[usable], dtype=np.float64)

    low, high = np.quantile(_resampled(count, ratio, seed), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), count, "percentile bootstrap over rows", level)


def paired_bootstrap(
    left: Values, right: Values, *, seed: int = 0, level: float = LEVEL
) -> Estimate | None:
    """Return mean(left - right) of values of the same rows, with the interval of `bootstrap_mean`.

    Whole rows are drawn, which keeps the correlation; an interval that contains 0 shows no
    difference.
    """
    difference = np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
    return bootstrap_mean(difference, seed=seed, level=level)


def wilson_interval(successes: int, count: int) -> Estimate | None:
    """Return the share of successes with Wilson's score interval at 95 %; None for no rows.

    Unlike a bootstrap it keeps its width at 0 of n and n of n. Source: Wilson 1927.
    """
    from scipy import stats

    assert 0 <= successes <= count
    if count == 0:
        return None
    interval = stats.binomtest(successes, count).proportion_ci(LEVEL, method="wilson")
    low, high = float(interval.low), float(interval.high)
    return Estimate(successes / count, low, high, count, "Wilson score interval")


def mcnemar_exact(right_to_wrong: int, wrong_to_right: int) -> float:
    """Return the two-sided p-value of rows flipping equally often in both directions.

    It is the binomial test on the discordant rows; 1 without any. Source: McNemar 1947, exact form
    by the binomial distribution.
    """
    from scipy import stats

    flips = right_to_wrong + wrong_to_right
    return float(stats.binomtest(right_to_wrong, flips).pvalue) if flips else 1.0


def pareto_front(objectives: npt.ArrayLike) -> list[int]:
    """Return the indices of the points that no other point dominates, in input order.

    A point is dominated by one that is at least as good in every measure and better in one; equal
    points do not dominate each other.

    Args:
        objectives: shape (points, measures), all to be maximised; negate what should be small, such
            as peak memory.
    """
    points = np.asarray(objectives, dtype=np.float64)
    front = []
    for index, point in enumerate(points):
        no_worse = (points >= point).all(axis=1)
        better = (points > point).any(axis=1)
        if not (no_worse & better).any():
            front.append(index)
    return front


def knee(throughput: Values, agreement: Values) -> int | None:
    """Return the point of a Pareto front past which more speed costs much agreement.

    The point farthest above the chord from the fastest to the most agreeing point, both axes
    scaled to 0..1, throughput on a log scale, so that a doubling counts the same anywhere and the
    unit does not matter. Returns the first of equally far points, and None if no point lies above
    the chord (for example with fewer than three points) or a throughput is not > 0.
    Source: Das 1999; normalised as in Satopaa et al. 2011 (Kneedle).
    """
    rates, agreeing = np.asarray(throughput, dtype=np.float64), np.asarray(agreement)
    if len(rates) < 3 or rates.min() <= 0:
        return None
    speed = np.log(rates)
    if np.ptp(speed) == 0 or np.ptp(agreeing) == 0:
        return None
    x = (speed - speed.min()) / np.ptp(speed)
    y = (agreeing - agreeing.min()) / np.ptp(agreeing)
    fastest = max(range(len(x)), key=lambda index: (x[index], y[index]))
    closest = max(range(len(x)), key=lambda index: (y[index], x[index]))
    slope_x, slope_y = x[fastest] - x[closest], y[fastest] - y[closest]
    if slope_x <= 0:
        return None
    above = slope_x * (y - y[closest]) - slope_y * (x - x[closest])
    best = int(np.argmax(above))
    return best if above[best] > 1e-9 else None


def _resampled(
    count: int, statistic: Callable[[npt.NDArray[np.int64]], FloatArray], seed: int
) -> FloatArray:
    """Return `statistic` of RESAMPLES draws of row numbers [draws, count], in bounded memory."""
    generator = np.random.default_rng(seed)
    piece = max(1, min(RESAMPLES, _INDICES_AT_ONCE // count))
    starts = [*range(0, RESAMPLES, piece), RESAMPLES]
    sizes = (stop - start for start, stop in pairwise(starts))
    return np.concatenate(
        [statistic(generator.integers(0, count, size=(size, count))) for size in sizes]
    )
