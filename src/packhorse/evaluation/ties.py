"""Is one trial faster than another, or is it noise? Decided from the values of their repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_DIFFERENCE = 0.02
ASSUMED_NOISE = 0.30
# Student's t, quantile of 0.975 for 1, 2, ... degrees of freedom.
_T = (
    *(12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157),
    *(2.228139, 2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922),
    *(2.093024, 2.085963, 2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831),
    *(2.048407, 2.045230, 2.042272),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two trials over the rounds both were measured in.

    ratio: geometric mean of left / right; low, high: what it may be by `rule`; None of all where
        no round has both.
    tie: the difference is inside the noise, below MIN_DIFFERENCE, or unknown.
    """

    ratio: float | None
    low: float | None
    high: float | None
    rounds: int
    tie: bool
    rule: str


def compare_repeats(left: Sequence[float | None], right: Sequence[float | None]) -> Comparison:
    """left / right from values of the same rounds (position i is round i; None: not measured).

    Values are throughputs or seconds; what is not > 0 counts as not measured. Rounds run
    interleaved, so a machine that is slow for a minute is slow for both and falls out of the ratio
    of a round. From three rounds the interval is exp(m +- t s / sqrt(n)), m and s mean and standard
    deviation of the log ratios, t Student's 97.5 % quantile of n - 1 degrees of freedom. One or two
    rounds cannot tell their own noise: the smallest and largest ratio are widened by ASSUMED_NOISE
    (30 %, measured on an ordinary shared machine). It is a tie when the interval includes 1 or the
    ratio is within MIN_DIFFERENCE (2 %) of 1. Source: Student 1908 on log ratios; pairing by block,
    Fisher 1935.
    """
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if a and b and min(a, b) > 0]
    if not pairs:
        return Comparison(None, None, None, 0, True, "no common round")
    logs = np.log([a for a, _ in pairs]) - np.log([b for _, b in pairs])
    count, centre = len(logs), float(logs.mean())
    if count < 3:
        margin = math.log1p(ASSUMED_NOISE)
        low, high = float(logs.min()) - margin, float(logs.max()) + margin
        rule = f"assumed noise of {ASSUMED_NOISE:.0%}"
    else:
        margin = _student(count - 1) * float(logs.std(ddof=1)) / math.sqrt(count)
        low, high = centre - margin, centre + margin
        rule = "Student's t on log ratios of paired rounds"
    tie = low <= 0.0 <= high or abs(centre) < math.log1p(MIN_DIFFERENCE)
    return Comparison(math.exp(centre), math.exp(low), math.exp(high), count, tie, rule)


def _student(degrees: int) -> float:
    """0.975 quantile of Student's t; past the table by Fisher's expansion, right to 1e-4."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    z = 1.959963984540054
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
