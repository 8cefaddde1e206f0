"""Render an assessment as one page that opens offline."""

from __future__ import annotations

from packhorse.assess import narrative
from packhorse.assess.document import Assessment
from packhorse.assess.html import views
from packhorse.assess.html.charts import (
    NARROW,
    WIDE,
    Chart,
    cascade_chart,
    cost_chart,
    learning_chart,
)
from packhorse.assess.html.forest import forest
from packhorse.reports.html.page import facts, page_text

_SECTIONS = (
    ("accuracy", "Accuracy"),
    ("cost", "Cost"),
    ("labels", "Labels needed"),
    ("cascade", "Cascade"),
    ("contestants", "All figures"),
    ("rows", "Rows"),
    ("settings", "Settings"),
    ("machine", "Machine"),
    ("reading", "How to read this"),
)


def html_text(assessment: Assessment) -> str:
    """Return the page."""
    return page_text(
        "packhorse.assess",
        verb="assess",
        subject=assessment.model,
        headline=narrative.headline(assessment),
        sections=_SECTIONS,
        assessment=assessment,
        title=narrative.verdict_title(assessment),
        tiles=views.tiles(assessment),
        forests=[forest(assessment, narrow=False), forest(assessment, narrow=True)],
        cost=_without_none(cost_chart(assessment, WIDE), cost_chart(assessment, NARROW)),
        learning=_without_none(
            learning_chart(assessment, WIDE), learning_chart(assessment, NARROW)
        ),
        cascade=_without_none(cascade_chart(assessment, WIDE), cascade_chart(assessment, NARROW)),
        table=views.contestant_table(assessment),
        settings=views.settings(assessment),
        pair=narrative.pair_sentence(assessment),
        needed=[narrative.labels_needed_sentence(curve) for curve in assessment.curves],
        together=narrative.cascade_sentence(assessment),
        economy=narrative.economy_lines(assessment),
        profile=narrative.profile_lines(assessment),
        method=narrative.method_lines(assessment),
        facts=facts(
            {
                "Machine": assessment.machine,
                "Engine": assessment.ran,
                "Versions": assessment.versions,
                "Settings": assessment.settings,
            }
        ),
    )


def _without_none(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]
