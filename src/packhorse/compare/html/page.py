"""Render a comparison as one page that opens offline."""

from __future__ import annotations

from packhorse.compare.document import Comparison
from packhorse.compare.html import details, views
from packhorse.compare.html.scatter import NARROW, WIDE, scatters
from packhorse.compare.html.strips import latency_strips
from packhorse.compare.narrative import headline, limits_line, recommendation_title
from packhorse.reports.html.page import facts, page_text

_SECTIONS = (
    ("trade-off", "Trade-off"),
    ("trials", "Trials"),
    ("latency", "Latency"),
    ("accuracy", "Accuracy"),
    ("effects", "Effects"),
    ("worst-rows", "Worst rows"),
    ("repeats", "Raw values"),
    ("machine", "Machine"),
    ("reading", "How to read this"),
)


def html_text(comparison: Comparison) -> str:
    """Return the page."""
    wide, narrow = scatters(comparison, WIDE), scatters(comparison, NARROW)
    strips = latency_strips(comparison, narrow=False), latency_strips(comparison, narrow=True)
    return page_text(
        "packhorse.compare",
        verb="compare",
        subject=comparison.model,
        headline=headline(comparison),
        sections=_SECTIONS,
        comparison=comparison,
        limits=limits_line(comparison),
        title=recommendation_title(comparison),
        tiles=views.tiles(comparison),
        legend=views.legend(comparison),
        sizes=views.size_legend(comparison),
        scatters=list(zip(wide, narrow, strict=True)),
        strips=[drawing for drawing in strips if drawing],
        trials=views.trial_table(comparison),
        accuracy=views.accuracy_table(comparison),
        effects=details.effects(comparison),
        worst=details.worst_rows(comparison),
        repeats=details.repeats(comparison),
        meanings=details.meanings(comparison),
        facts=facts(
            {
                "Machine": comparison.machine,
                "Versions": comparison.versions,
                "Sample": comparison.sample,
                "Reference": comparison.reference,
            }
        ),
    )
