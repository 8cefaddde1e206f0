"""How reports write numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

Format = Callable[[float], str]
ABSENT = "–"


def finite(value: float | None) -> float | None:
    """The value, or None for what was not measured (None, NaN, infinite)."""
    return value if value is not None and math.isfinite(value) else None


def show(value: float | None, form: Format) -> str:
    """`form` of the value, a dash for what was not measured."""
    known = finite(value)
    return ABSENT if known is None else form(known)


def number(value: float) -> str:
    """Three significant digits: 1,234 / 123 / 12.3 / 0.0123."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    if abs(value) < 0.0001:
        return "<0.0001" if value > 0 else f"{value:.4f}" if value else "0"
    return f"{value:#.3g}"


def gigabytes(value: float) -> str:
    """Bytes as GB (1e9), two decimals."""
    return f"{value / 1e9:.2f}"


def percent(value: float) -> str:
    """A share as per cent; what is not quite everything is never rounded to it, nor to nothing."""
    if 0 < value < 0.001:
        return "<0.1%"
    if 0.999 < value < 1:
        return "99.9%"
    return f"{value:.1%}" if 0 < value < 1 else f"{value:.0%}"


def score(value: float) -> str:
    """A share with three decimals; only 1 itself reads 1.000."""
    return "0.999" if 0.999 < value < 1 else f"{value:.3f}"


def times(value: float) -> str:
    """A ratio: 2.31×."""
    return f"{number(value)}×"


def one_decimal(value: float) -> str:
    return f"{value:.1f}"


def general(value: float) -> str:
    """As a person would have typed it."""
    return f"{value:g}"


def count(value: float) -> str:
    return f"{value:,.0f}"
