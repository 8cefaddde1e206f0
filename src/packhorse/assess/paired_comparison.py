"""Compare two contestants on the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from packhorse.evaluation.statistics import Estimate, mcnemar_exact, paired_bootstrap

_Z = 1.959963984540054
"""Standard normal quantile of 0.975: two-sided 95 %, one-sided 97.5 %."""
_Z_POWER = 0.8416212335729143
"""Of 0.8."""
_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """The difference in accuracy of two contestants.

    Attributes:
        left: name.
        right: name.
        rows: test rows of both.
        difference: accuracy of left - of right, with Tango's score interval.
        bootstrap: the same with a paired bootstrap over rows.
        left_only: rows that only left has correct; also right_only.
        mcnemar_p: exact, two-sided: probability of a split of those rows at least this uneven if
            both are equally good.
    """

    left: str
    right: str
    rows: int
    difference: Estimate
    bootstrap: Estimate
    left_only: int
    right_only: int
    mcnemar_p: float

    def is_non_inferior(self, margin: float) -> bool:
        """Whether left is worse by less than `margin`, at one-sided 2.5 %."""
        assert self.difference.low is not None
        return self.difference.low > -margin

    def is_inferior(self, margin: float) -> bool:
        """Whether left is worse by more than `margin`, at one-sided 2.5 %."""
        assert self.difference.high is not None
        return self.difference.high < -margin

    @property
    def is_superior(self) -> bool:
        """Whether left is better, at one-sided 2.5 %."""
        return self.is_non_inferior(0.0)


def compare_pair(
    left: str,
    right: str,
    left_correct: Sequence[bool],
    right_correct: Sequence[bool],
    *,
    seed: int = 0,
) -> PairedComparison:
    """Compare two contestants from whether each has a row correct."""
    rows = list(zip(left_correct, right_correct, strict=True))
    only_left, only_right = rows.count((True, False)), rows.count((False, True))
    bootstrap = paired_bootstrap(
        [float(value) for value in left_correct],
        [float(value) for value in right_correct],
        seed=seed,
    )
    assert bootstrap is not None
    return PairedComparison(
        left=left,
        right=right,
        rows=len(rows),
        difference=tango_interval(only_left, only_right, len(rows)),
        bootstrap=bootstrap,
        left_only=only_left,
        right_only=only_right,
        mcnemar_p=mcnemar_exact(only_left, only_right),
    )


def tango_interval(only_left: int, only_right: int, rows: int) -> Estimate:
    """Return (only_left - only_right) / rows of two paired shares, with the score interval.

    It holds all differences d that the score test does not reject at 5 %: |T(d)| <= z, T(d) = (b -
    c - n d) / sqrt(n (2 q + d (1 - d))), where q is the maximum-likelihood estimate of P(right
    only) given d, the larger root of 2 n q^2 + B q + C = 0, B = -b - c + (2 n - b + c) d, C = -c d
    (1 - d). T decreases in d, so each end is found by bisection. Unlike a bootstrap interval it
    keeps its width if both agree on all rows. Source: Tango 1998, Statistics in Medicine 17,
    891-908, recommended for non-inferiority of paired shares.
    """
    assert only_left >= 0
    assert only_right >= 0
    assert 0 < rows >= only_left + only_right
    value = (only_left - only_right) / rows

    def statistic(d: float) -> float:
        return tango_statistic(only_left, only_right, rows, d)

    low = _bisect(lambda d: statistic(d) > _Z, -1.0, value)
    high = _bisect(lambda d: statistic(d) >= -_Z, value, 1.0)
    return Estimate(value, low, high, rows, "Tango score interval")


def tango_statistic(only_left: int, only_right: int, rows: int, difference: float) -> float:
    """Return T(d) of `tango_interval`, standard normal in large samples if the difference is d."""
    b, c, n, d = only_left, only_right, rows, difference
    numerator = b - c - n * d
    linear = -b - c + (2 * n - b + c) * d
    root = math.sqrt(max(linear**2 + 8 * n * c * d * (1 - d), 0.0))
    share = (root - linear) / (4 * n)
    variance = n * (2 * share + d * (1 - d))
    if variance <= 1e-12:
        return 0.0 if abs(numerator) < 1e-9 else math.copysign(math.inf, numerator)
    return numerator / math.sqrt(variance)


def rows_needed(only_left: int, only_right: int, rows: int, margin: float) -> int | None:
    """Return the test rows that show non-inferiority by `margin` with 80 % power.

    If the observed difference is below -margin: that show inferiority. Assumes that the true rates
    are the observed ones. n = (z_0.975 + z_0.8)^2 (p - d^2) / (margin + d)^2, with the difference d
    and p = (b + c + 1) / (n + 2), the share of rows only one has correct, kept above 0. None if d
    is -margin. Source: Connett et al. 1987, with the margin of Liu et al. 2002, Statistics in
    Medicine 21, 231-245.
    """
    difference = (only_left - only_right) / rows
    distance = margin + difference
    if abs(distance) < 1e-9:
        return None
    discordant = (only_left + only_right + 1) / (rows + 2)
    spread = max(discordant - difference**2, 0.0)
    return math.ceil((_Z + _Z_POWER) ** 2 * spread / distance**2)


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return where `holds` turns from true to false between low and high; low if it never holds."""
    if not holds(low):
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2
