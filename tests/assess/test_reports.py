"""The reports: they say the verdict and every figure, and nothing in the data can break them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from html_page import HOSTILE, SHOWN, Page, check_inert, check_links, check_self_contained
from packhorse.assess.document import Assessment
from packhorse.assess.html.charts import NARROW, WIDE, cascade_chart, cost_chart, learning_chart
from packhorse.assess.html.forest import forest
from packhorse.assess.html.page import html_text
from packhorse.assess.markdown import markdown_text
from packhorse.assess.metric_definitions import metrics
from packhorse.assess.narrative import labels_needed_sentence, points
from packhorse.assess.terminal import table
from packhorse.evaluation.statistics import Estimate
from packhorse.reports.documents import json_text, read_document

SLOW = pytest.mark.slow


@pytest.fixture(params=[pytest.param(name, marks=SLOW) for name in ("learnable", "hidden", "both")])
def assessment(request: pytest.FixtureRequest) -> Assessment:
    found: Assessment = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def hostile(both: Assessment) -> Assessment:
    return replace(
        both,
        command=HOSTILE,
        model=HOSTILE,
        classify=HOSTILE,
        notes=(HOSTILE,),
        machine={HOSTILE: HOSTILE},
        settings={**both.settings, HOSTILE: HOSTILE},
        prompt={"instruction": HOSTILE, "examples": [[HOSTILE, HOSTILE]], "names": {}},
        profile=replace(both.profile, classes={HOSTILE: 3}, rare={HOSTILE: 1}),
        verdict=replace(both.verdict, reason=HOSTILE, cautions=(HOSTILE,)),
        contestants=tuple(
            replace(each, title=HOSTILE, settings={HOSTILE: HOSTILE}) for each in both.contestants
        ),
    )


def test_the_page_stands_alone(assessment: Assessment) -> None:
    text = html_text(assessment)
    check_self_contained(text)
    check_links(text)
    assert len(text) < 500_000


def test_hostile_data_is_shown_and_does_nothing(both: Assessment, hostile: Assessment) -> None:
    text = html_text(hostile)
    check_inert(text, html_text(both))
    assert SHOWN in Page(text).text
    text.encode("utf-8")


def test_hostile_data_breaks_no_line(hostile: Assessment) -> None:
    text = markdown_text(hostile)
    assert "<script" not in text.replace("\\<", "")
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert len(widths) == 3
    for character in ("\x00", "\x1b"):
        assert character not in text
        assert character not in table(hostile, 100)


def test_every_report_says_verdict_finalists_and_intervals(assessment: Assessment) -> None:
    page, text, lines = (
        Page(html_text(assessment)).text,
        markdown_text(assessment),
        table(assessment, 140),
    )
    for said in (page, " ".join(lines.split())):
        assert assessment.verdict.reason in said
        for curve in assessment.curves:
            assert labels_needed_sentence(curve) in said
    plain = re.sub(r"\\(.)", r"\1", text)
    assert assessment.verdict.reason in plain
    for each in assessment.contestants:
        assert each.title in page
        assert each.title in plain
        assert each.name in lines
    assert points(assessment.pair.difference) in page
    for column in metrics(assessment):
        assert column.label in page
        assert column.meaning in page


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_lines_keep_the_width(assessment: Assessment, width: int) -> None:
    lines = table(assessment, width).splitlines()
    commands = [line for line in lines if line.startswith("  packhorse classify")]
    assert len(commands) == 1
    assert max(len(line) for line in lines if line not in commands) <= width


@pytest.mark.parametrize("layout", [WIDE, NARROW])
def test_drawings_stay_inside(assessment: Assessment, layout: object) -> None:
    for draw in (cost_chart, learning_chart, cascade_chart):
        chart = draw(assessment, layout)  # type: ignore[arg-type]
        assert chart is not None
        assert chart.marks
        for mark in chart.marks:
            assert 0 <= mark.x <= chart.layout.width
            assert 0 <= mark.y <= chart.layout.height
        for curve in chart.curves:
            numbers = list(map(float, re.findall(r"-?\d+\.\d", curve.path + curve.band)))
            assert min(numbers) >= 0
            assert max(numbers[::2]) <= chart.layout.width
    drawing = forest(assessment, narrow=layout is NARROW)
    assert len(drawing.rows) == len(assessment.contestants)
    for row in drawing.rows:
        assert drawing.x.start <= row.low <= row.at <= row.high <= drawing.x.end


def test_the_recommended_one_is_ringed(both: Assessment, learnable: Assessment) -> None:
    for found, name in ((both, "cascade"), (learnable, learnable.verdict.winner)):
        chart = cost_chart(found, WIDE)
        assert chart is not None
        assert [mark.text for mark in chart.marks if mark.ring] == [name]


def test_json_is_strict_and_can_be_read_back(assessment: Assessment, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json_text(assessment))
    assert "NaN" not in path.read_text()
    assert read_document(path, Assessment, 1, "assess") == assessment


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        (Estimate(0.123, 0.1, 0.146, 9, ""), "+12.3 points (95%: +10.0 to +14.6)"),
        (Estimate(-0.01, None, None, 1, ""), "-1.0 points"),
    ],
)
def test_points(estimate: Estimate, said: str) -> None:
    assert points(estimate) == said
