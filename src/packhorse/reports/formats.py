"""Number formats of the reports."""

from __future__ import annotations

import math
from collections.abc import Callable

Format = Callable[[float], str]
ABSENT = "–"


def finite(value: float | None) -> float | None:
    """Return the value, or None if it was not measured (None, NaN, infinite)."""
    return value if value is not None and math.isfinite(value) else None


def show(value: float | None, form: Format) -> str:
    """Return the formatted value, or a dash if it was not measured."""
    known = finite(value)
    return ABSENT if known is None else form(known)


def number(value: float) -> str:
    """Format with three significant digits: 1,234 / 123 / 12.3 / 0.0123."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    if abs(value) < 0.0001:
        return "<0.0001" if value > 0 else f"{value:.4f}" if value else "0"
    return f"{value:#.3g}"


def gigabytes(value: float) -> str:
    """Format bytes as GB (1e9) with two decimals."""
    return f"{value / 1e9:.2f}"


def percent(value: float) -> str:
    """Format a share in per cent; a share below 1 never reads 100%, one above 0 never 0%."""
    if 0 < value < 0.001:
        return "<0.1%"
    if 0.999 < value < 1:
        return "99.9%"
    return f"{value:.1%}" if 0 < value < 1 else f"{value:.0%}"


def score(value: float) -> str:
    """Format a share with three decimals; only 1 itself reads 1.000."""
    return "0.999" if 0.999 < value < 1 else f"{value:.3f}"


def times(value: float) -> str:
    """Format a ratio: 2.31×."""
    return f"{number(value)}×"


def one_decimal(value: float) -> str:
    return f"{value:.1f}"


def general(value: float) -> str:
    """Format as typed: 0.5, 2, 1e-05."""
    return f"{value:g}"


def count(value: float) -> str:
    return f"{value:,.0f}"
