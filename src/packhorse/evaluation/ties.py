"""Compare the speed of two trials by their repeats, and tell a difference from noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

MIN_DIFFERENCE = 0.02
ASSUMED_NOISE = 0.30


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two trials over the rounds that both were measured in.

    Attributes:
        ratio: geometric mean of left / right.
        low, high: its interval by `rule`. All three are None if no round has both.
        tie: the difference is within the noise, below MIN_DIFFERENCE, or unknown.
    """

    ratio: float | None
    low: float | None
    high: float | None
    rounds: int
    tie: bool
    rule: str


def compare_repeats(left: Sequence[float | None], right: Sequence[float | None]) -> Comparison:
    """Return left / right from values of the same rounds (index i is round i; None: not measured).

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
        margin = (
            float(special.stdtrit(count - 1, 0.975)) * float(logs.std(ddof=1)) / math.sqrt(count)
        )
        low, high = centre - margin, centre + margin
        rule = "Student's t on log ratios of paired rounds"
    tie = low <= 0.0 <= high or abs(centre) < math.log1p(MIN_DIFFERENCE)
    return Comparison(math.exp(centre), math.exp(low), math.exp(high), count, tie, rule)
