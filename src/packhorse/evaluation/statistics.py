"""Numbers about numbers: quantiles, intervals, tests, ties, the Pareto front and its knee.

Everything here is pure and needs numpy only. Nothing below two values gets an interval: one value
says nothing about spread. Randomness is seeded, so a report can be made again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from packhorse.profiling import run_metrics

Values = Sequence[float] | npt.NDArray[np.floating[Any]]
FloatArray = npt.NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2_000
_Z = 1.959963984540054  # standard normal quantile of 0.975
_INDICES_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with the interval it is known to.

    value, low, high: in the unit of the measure; low and high are None below two values.
    count: values it rests on.
    rule: how the interval was made, for the report.
    coverage: how often such an interval holds the true value, where that is known; LEVEL otherwise.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    rule: str
    coverage: float = LEVEL

    def mapped(self, increasing: Callable[[float], float]) -> Estimate:
        """Value and interval through an increasing function; a percentile interval stays one."""
        low, high = (
            None if end is None else float(increasing(end)) for end in (self.low, self.high)
        )
        return replace(self, value=float(increasing(self.value)), low=low, high=high)


def quantile(values: Values, share: float) -> float | None:
    """Linear interpolation between order statistics at position share x (n - 1), counted from 0.

    None for no values. Source: Hyndman and Fan 1996, type 7 (numpy's and R's default).
    """
    return run_metrics.quantile(sorted(values), share)


def median_interval(values: Values, level: float = LEVEL) -> Estimate | None:
    """Median with the narrowest symmetric pair of order statistics that covers at least `level`.

    [x(k), x(n+1-k)] holds the median of any continuous distribution with probability
    1 - 2 P(B <= k - 1), B ~ Binomial(n, 1/2). Below 6 values no pair reaches 95 %: then it is
    minimum..maximum with its own coverage of 1 - 2^(1-n) (3 values: 75 %), said in `rule`.
    None for no values. Source: Thompson 1936; Hahn and Meeker 1991, section 5.2.
    """
    count = len(values)
    if count == 0:
        return None
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    value = float(np.median(ordered))
    if count == 1:
        return Estimate(value, None, None, 1, "one value, no interval", 0.0)
    outside = 2.0 * np.cumsum(_binomial_half(count))
    ranks = np.flatnonzero(outside <= 1.0 - level)
    rank = int(ranks[-1]) if len(ranks) else 0
    rule = "order statistics" if len(ranks) else "minimum..maximum"
    low, high = float(ordered[rank]), float(ordered[count - 1 - rank])
    return Estimate(value, low, high, count, rule, 1.0 - float(outside[rank]))


def bootstrap_mean(values: Values, *, seed: int = 0, level: float = LEVEL) -> Estimate | None:
    """Mean over rows with a percentile bootstrap interval of RESAMPLES resamples.

    Rows are the unit that is drawn. None for no values. Identical values give an interval of
    width 0, which says the sample has no spread, not that the population has none; for shares of
    yes and no use `wilson_interval`. Source: Efron 1979; Efron and Tibshirani 1993, chapter 13.
    """
    ones = np.ones(len(values))
    return bootstrap_ratio(values, ones, seed=seed, level=level)


def bootstrap_ratio(
    numerators: Values, denominators: Values, *, seed: int = 0, level: float = LEVEL
) -> Estimate | None:
    """sum(numerators) / sum(denominators) over rows, percentile bootstrap as `bootstrap_mean`.

    Numerator and denominator of a row are drawn together. Denominators are >= 0; None where they
    sum to 0. A resample whose denominators sum to 0 is left out.
    """
    above = np.asarray(numerators, dtype=np.float64)
    below = np.asarray(denominators, dtype=np.float64)
    count = len(above)
    assert len(below) == count, "one denominator a row"
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
    """mean(left - right) of values that belong to the same rows, interval as `bootstrap_mean`.

    Drawing whole rows keeps what the two share; an interval that holds 0 shows no difference.
    """
    difference = np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
    return bootstrap_mean(difference, seed=seed, level=level)


def wilson_interval(successes: int, count: int) -> Estimate | None:
    """Share of yes with Wilson's score interval at 95 %; None for no rows.

    Centre (p + z^2 / 2n) / (1 + z^2 / n), half width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2 / n),
    z = 1.96. Unlike a bootstrap it keeps its width at 0 of n and n of n. Source: Wilson 1927.
    """
    assert 0 <= successes <= count
    if count == 0:
        return None
    share = successes / count
    scale = 1.0 + _Z**2 / count
    centre = (share + _Z**2 / (2 * count)) / scale
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / scale
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == count else centre + half
    return Estimate(share, low, high, count, "Wilson score interval")


def mcnemar_exact(right_to_wrong: int, wrong_to_right: int) -> float:
    """Two-sided p-value that rows flip equally often in both directions.

    min(1, 2 P(B <= min(b, c))), B ~ Binomial(b + c, 1/2): the binomial test on the discordant
    rows; 1 without any. Source: McNemar 1947, exact form by the binomial distribution.
    """
    flips = right_to_wrong + wrong_to_right
    tail = _binomial_half(flips)[: min(right_to_wrong, wrong_to_right) + 1].sum()
    return min(1.0, 2.0 * float(tail))


def pareto_front(objectives: npt.ArrayLike) -> list[int]:
    """Indices of the points no other point beats, in input order.

    objectives: shape (points, measures), all to be maximised; negate what should be small (peak
    memory). A point is beaten by one at least as good in every measure and better in one; equal
    points stay together.
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
    """Index of the point of a Pareto front where more speed starts to cost much agreement.

    The point farthest above the chord from the fastest to the most agreeing point, both axes
    scaled to 0..1, throughput on a log scale, so that a doubling counts the same anywhere and the
    unit does not matter. None where no point lies above the chord (fewer than three points among
    others) or a throughput is not > 0: then there is a choice, but no knee. The first of equally
    far points.
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


def _binomial_half(trials: int) -> FloatArray:
    """P(B = k) for k = 0..trials, B ~ Binomial(trials, 1/2), by logs of C(n, k) ratios."""
    k = np.arange(1, trials + 1, dtype=np.float64)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((trials - k + 1) / k))])
    return np.asarray(np.exp(log_choose - trials * math.log(2.0)), dtype=np.float64)


def _resampled(
    count: int, statistic: Callable[[npt.NDArray[np.int64]], FloatArray], seed: int
) -> FloatArray:
    """`statistic` of RESAMPLES draws of row numbers (draws, count), in pieces of bounded memory."""
    generator = np.random.default_rng(seed)
    piece = max(1, min(RESAMPLES, _INDICES_AT_ONCE // count))
    starts = [*range(0, RESAMPLES, piece), RESAMPLES]
    sizes = (stop - start for start, stop in pairwise(starts))
    return np.concatenate(
        [statistic(generator.integers(0, count, size=(size, count))) for size in sizes]
    )
