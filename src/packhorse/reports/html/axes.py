"""Map values to positions on a drawing, with round ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass

LOG_FROM = 5.0


@dataclass(frozen=True, slots=True)
class Axis:
    """Linear or logarithmic map from [low, high] to [start, end] in drawing units.

    start > end reverses it; ticks: round values in [low, high].
    """

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Return the position of a value; values outside are drawn at the edge."""
        inside = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(inside / self.low) / math.log(self.high / self.low)
        else:
            share = (inside - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def spanning_axis(low: float, high: float, start: float, end: float, ticks: int = 7) -> Axis:
    """Return an axis around positive values, logarithmic if they span a factor of LOG_FROM."""
    assert 0 < low <= high
    if high / low >= LOG_FROM:
        low, high = low / 1.15, high * 1.15
        return Axis(low, high, start, end, True, _log_ticks(low, high, ticks))
    margin = (high - low) * 0.12 or low * 0.25
    low, high = max(low - margin, 0.0), high + margin
    return Axis(low, high, start, end, False, _round_ticks(low, high, ticks))


def share_axis(low: float, start: float, end: float) -> Axis:
    """Return an axis for shares from 0, or from a round value below `low`, to 1."""
    bottom = 0.0 if low < 0.4 or low > 0.995 else math.floor((low - 0.02) * 10) / 10
    return Axis(bottom, 1.0, start, end, False, _round_ticks(bottom, 1.0, 5))


def ratio_axis(low: float, high: float, start: float, end: float) -> Axis:
    """Return a logarithmic axis that contains 1, so that doubling and halving look alike."""
    low, high = min(low, 0.9) / 1.08, max(high, 1.1) * 1.08
    return Axis(low, high, start, end, True, _log_ticks(low, high, 6))


def _round_ticks(low: float, high: float, about: int) -> tuple[float, ...]:
    """Return about `about` multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.75)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(number * step, 12) for number in range(first, last + 1))


def _log_ticks(low: float, high: float, about: int) -> tuple[float, ...]:
    """Return 1, 2, 5 times powers of ten, or powers only if there would be too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        inside = tuple(round(tick, 12) for tick in ticks if low <= tick <= high)
        if len(inside) <= 2 * about:
            break
    return inside
