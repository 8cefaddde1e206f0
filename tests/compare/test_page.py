"""report.html: well-formed, self-contained, inert to what is in the data, readable."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from documents import FAILED, FLAGGED, comparison

from html_page import (
    HOSTILE,
    SHOWN,
    Page,
    check_inert,
    check_links,
    check_self_contained,
)
from packhorse.compare.document import Comparison, Estimate, Recommendation, WorstRow
from packhorse.compare.html.page import html_text


@pytest.fixture(scope="module")
def document() -> Comparison:
    return comparison()


@pytest.fixture(scope="module")
def text(document: Comparison) -> str:
    return html_text(document)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


@pytest.fixture(scope="module")
def hostile(document: Comparison) -> Comparison:
    worst = WorstRow(HOSTILE, HOSTILE, HOSTILE, f"{HOSTILE[:9]} other", 0.1, math.nan)
    trials = tuple(
        replace(
            trial, name=f"{trial.name}{HOSTILE}", batching=HOSTILE, engine=HOSTILE,
            reason=HOSTILE, compute_type=HOSTILE, threads=HOSTILE, flags=(HOSTILE,),
            worst_rows=(worst,), command=HOSTILE,
        )
        for trial in document.trials
    )  # fmt: skip
    recommendation = Recommendation(trials[-1].name, HOSTILE, HOSTILE, (HOSTILE,), HOSTILE)
    return replace(
        document, command=HOSTILE, created=HOSTILE, model=HOSTILE,
        machine={HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]}, versions={HOSTILE: HOSTILE},
        sample={"rows": 64, HOSTILE: HOSTILE}, reference={"name": HOSTILE}, trials=trials,
        limits={HOSTILE: 1.0}, recommendation=recommendation, knee=trials[4].name,
        pareto=(trials[4].name, trials[-1].name),
    )  # fmt: skip


class TestSelfContained:
    def test_refers_to_nothing_outside_and_allows_nothing_else(self, text: str) -> None:
        check_self_contained(text)

    def test_links_inside_lead_somewhere(self, text: str) -> None:
        check_links(text)

    @pytest.mark.slow
    @pytest.mark.parametrize("rows", [64, 2_000])
    def test_is_small(self, rows: int) -> None:
        assert len(html_text(comparison(rows=rows)).encode()) < 2_000_000


class TestInert:
    def test_data_makes_no_tags(self, hostile: Comparison, text: str) -> None:
        check_inert(html_text(hostile), text)

    def test_data_is_shown_as_it_is(self, hostile: Comparison) -> None:
        found = Page(html_text(hostile))
        assert f"Given up: {SHOWN}" in found.text

    def test_it_can_be_written(self, hostile: Comparison) -> None:
        html_text(hostile).encode("utf-8")


class TestContents:
    @pytest.mark.parametrize(
        "words",
        [
            "smollm2-135m-instruct 15 trials · 3 repeats · 64 rows",
            "Use ctranslate2 int8 sorted-dynamic",
            "packhorse run smollm2-135m-instruct prompts-mixed.jsonl -o answers.jsonl",
            f"{FAILED} failed repeat 2 was ended by signal 9 after 31 s (out of memory?)",
            f"{FLAGGED} generated 1.14 times as many tokens as the reference",
            "transformers float32: every row identical, speed 1.29× to 2.66×.",
            "ctranslate2 float32 → int8: 21.9% to 25.0% of rows identical",
            "Saturn has the most moons",
            "ran as int8_float32",
            "25.28 GB",
            "transformers 5.23.0",
            "What one change alone did",
            "How to read this",
        ],
    )
    def test_says(self, words: str, page: Page) -> None:
        assert words in page.text

    def test_every_trial_that_ended_is_a_point_anyone_can_reach(
        self, document: Comparison, page: Page
    ) -> None:
        points = [each for each in page.named("g") if each.get("class", "").startswith("point")]
        assert len(points) == 14 * 3 * 2  # trials x measures x layouts
        assert all(point["tabindex"] == "0" and point["role"] == "img" for point in points)
        for trial in document.trials:
            said = [p for p in points if p["aria-label"].split("\n")[0] == trial.name]
            assert bool(said) == (trial.name != FAILED)

    def test_headings_do_not_skip_levels(self, page: Page) -> None:
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
        assert levels.count(1) == 1
        for before, after in pairwise(levels):
            assert after <= before + 1 or (before, after) == (2, 4)

    def test_cells_fill_their_tables(self, text: str) -> None:
        for table in re.findall(r"<table.*?</table>", text, re.DOTALL):
            widths = {
                sum(
                    int(span or 1)
                    for span in re.findall(r"<t[hd](?:[^>]*?colspan=\"(\d+)\")?", row)
                )
                for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
            }
            assert len(widths) == 1


class TestPoorComparisons:
    def test_no_recommendation(self, document: Comparison) -> None:
        nothing = Recommendation("", "No trial is inside the limits.", "", (), "")
        found = Page(html_text(replace(document, recommendation=nothing)))
        assert "No recommendation No trial is inside the limits." in found.text
        assert "★ recommended" in found.text

    def test_nothing_measured(self, document: Comparison) -> None:
        trials = tuple(
            replace(
                trial, status="failed", reason="", speed={}, quality={}, repeats=(), worst_rows=()
            )
            for trial in document.trials
        )  # fmt: skip
        found = Page(html_text(replace(document, trials=trials, effects=(), reference={})))
        for words in (
            "No trial has both a throughput and an accuracy.",
            "No latency is known.",
            "Accuracy was not measured.",
            "No two trials differ in one thing only.",
            "No row of any trial differs from the reference.",
            "failed no reason given",
        ):
            assert words in found.text

    def test_no_trials(self, document: Comparison) -> None:
        Page(html_text(replace(document, trials=(), effects=())))

    def test_one_row_one_repeat_one_trial(self) -> None:
        document = comparison(rows=1, repeats=1)
        found = Page(html_text(replace(document, trials=document.trials[:1], effects=())))
        assert "1 trial · 1 repeat · 1 row" in found.text

    def test_figures_that_are_not_numbers(self, document: Comparison) -> None:
        nan = Estimate(math.nan, math.nan, math.nan)
        first = replace(
            document.trials[0],
            quality=dict.fromkeys(document.trials[0].quality, nan),
            quality_notes={"cosine_floor": math.nan},
        )
        effect = replace(document.effects[0], rows_identical=nan)
        found = html_text(
            replace(document, trials=(first, *document.trials[1:]), effects=(effect,), reference={})
        )
        Page(found)
        assert not re.search(r"\bnan\b|\bNone\b|\binf\b", Page(found).text)
        assert not re.search(r'="[^"]*\bnan\b', found)


class TestContrast:
    """WCAG 2.1 AA: 4.5 for text, 3 for what is drawn."""

    @staticmethod
    def schemes(page: Page) -> list[dict[str, str]]:
        blocks = re.findall(r":root \{(.*?)\}", page.raw["style"], re.DOTALL)
        return [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in blocks]

    @staticmethod
    def luminance(colour: str) -> float:
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(self, one: str, other: str) -> float:
        light, dark = sorted((self.luminance(one), self.luminance(other)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    @pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
    def test_colours(self, scheme: int, page: Page) -> None:
        colours = self.schemes(page)[scheme]
        text = ["ink", "muted", "accent", "warning", *(f"v{number}" for number in range(6))]
        for name in text:
            assert self.contrast(colours[name], colours["ground"]) >= 4.5, name
        for ground in ("panel", "accent-ground"):
            for name in ("ink", "muted", "accent"):
                assert self.contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        assert self.contrast(colours["ink"], colours["marked"]) >= 4.5
