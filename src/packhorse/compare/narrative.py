"""Sentences of a comparison that all reports share."""

from __future__ import annotations

from packhorse.compare.document import Comparison
from packhorse.reports.formats import general
from packhorse.reports.text import counted, machine_facts, when

MARKS = {
    "●": "on the Pareto front",
    "◆": "its knee",
    "★": "recommended",
    "≈": "tied in speed with it",
}


def recommendation_title(comparison: Comparison) -> str:
    """Return the recommendation in a few words."""
    name = comparison.recommendation.trial
    return f"Use {name}" if name else "No recommendation"


def headline(comparison: Comparison) -> str:
    """Return trials, rows, machine and date on one line."""
    repeats = max((len(trial.repeats) for trial in comparison.trials), default=0)
    parts = [
        counted(len(comparison.trials), "trial"),
        counted(repeats, "repeat"),
        counted(int(comparison.sample.get("rows") or 0), "row"),
        *machine_facts(comparison.machine),
        when(comparison.created),
    ]
    return " · ".join(part for part in parts if part)


def limits_line(comparison: Comparison) -> str:
    """Return the given limits in words; "" for none."""
    return ", ".join(
        _LIMITS.get(name, f"{name} #").replace("#", general(value))
        for name, value in comparison.limits.items()
        if value is not None
    )


_LIMITS = {
    "max_p95": "p95 latency at most # s",
    "max_ram": "peak memory at most # GB",
    "min_agreement": "matched prefix at least #",
}
