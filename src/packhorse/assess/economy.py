"""Compute the break-even volume of the classic contestant and the cost of a month."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MONTH_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Offer:
    """Cost of one contestant.

    Attributes:
        core_seconds: per 1,000 rows.
        once: core-seconds before the first row.
        labels: labelled rows it was fitted on.
    """

    name: str
    title: str
    core_seconds: float
    once: float
    labels: int


@dataclass(frozen=True, slots=True)
class Month:
    """A month of `volume` rows.

    Attributes:
        cores: cores it keeps busy all month.
        money: in the currency of the prices; None without a price.
    """

    name: str
    title: str
    core_hours: float
    cores: float
    money: float | None


@dataclass(frozen=True, slots=True)
class Economy:
    """Break-even and monthly cost.

    Attributes:
        volume: rows per month; None if not given.
        once_core_seconds: tuning and fitting of the classic contestant.
        saved_core_seconds: per row, against the model.
        rows: break-even by core time; None if it saves nothing.
        rows_with_labels: break-even in money, including labels; None without both prices.
        after_months: the same in months of `volume`, as after_months_with_labels.
    """

    volume: float | None
    months: tuple[Month, ...]
    once_core_seconds: float
    labels: int
    saved_core_seconds: float
    rows: float | None
    rows_with_labels: float | None
    after_months: float | None
    after_months_with_labels: float | None


def compute_economy(
    classic: Offer,
    model: Offer,
    others: Sequence[Offer],
    volume: float | None,
    price_core_hour: float | None,
    price_label: float | None,
) -> Economy:
    """Compute break-even: one-time cost of the classic contestant / its saving per row."""
    saved = (model.core_seconds - classic.core_seconds) / 1000
    rows = classic.once / saved if saved > 0 else None
    with_labels = None
    if price_core_hour is not None and price_label is not None and saved > 0 < price_core_hour:
        once = classic.once / 3600 * price_core_hour + classic.labels * price_label
        with_labels = once / (saved / 3600 * price_core_hour)
    return Economy(
        volume=volume,
        months=()
        if volume is None
        else tuple(_month(offer, volume, price_core_hour) for offer in (classic, model, *others)),
        once_core_seconds=classic.once,
        labels=classic.labels,
        saved_core_seconds=saved,
        rows=rows,
        rows_with_labels=with_labels,
        after_months=_per(rows, volume),
        after_months_with_labels=_per(with_labels, volume),
    )


def _month(offer: Offer, volume: float, price: float | None) -> Month:
    seconds = offer.core_seconds * volume / 1000
    money = None if price is None else seconds / 3600 * price
    return Month(offer.name, offer.title, seconds / 3600, seconds / _MONTH_SECONDS, money)


def _per(rows: float | None, volume: float | None) -> float | None:
    return None if rows is None or not volume else rows / volume
