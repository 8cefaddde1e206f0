"""The comparison on a terminal: what is shown at which width, and what never is."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from documents import BATCHINGS, FAILED, comparison

from packhorse.compare.document import Comparison, Estimate, Recommendation, Spread
from packhorse.compare.terminal import table
from packhorse.reports.terminal import NARROWEST


@pytest.fixture(scope="module")
def document() -> Comparison:
    return comparison()


def lines_of(document: Comparison, width: int) -> list[str]:
    return table(document, width).split("\n")


@pytest.mark.parametrize("width", [20, 60, 72, 80, 100, 120, 160, 400])
def test_no_line_is_longer_than_the_terminal_but_the_command(
    width: int, document: Comparison
) -> None:
    command = f"  {document.recommendation.command}"
    lines = lines_of(document, width)
    assert command in lines
    assert max(len(line) for line in lines if line != command) <= max(width, NARROWEST)


@pytest.mark.parametrize(
    ("width", "shown", "dropped"),
    [
        (80, ("run", "speed", "p95", "peak", "rows"), ("tokens", "KL", "cosine", "wasted")),
        (100, ("low–high", "p50", "wasted", "cosine"), ("tokens", "nats")),
        (160, ("tokens", "cosine", "nats"), ()),
    ],
)  # fmt: skip
def test_the_least_important_columns_go_first(
    width: int, shown: tuple[str, ...], dropped: tuple[str, ...], document: Comparison
) -> None:
    lines = lines_of(document, width)
    first = next(place for place, line in enumerate(lines) if line.startswith("transformers"))
    heading = " ".join(lines[first - 2 : first]).split()
    assert set(shown) <= set(heading)
    assert not set(dropped) & set(heading)


@pytest.mark.parametrize("width", [60, 100, 160])
def test_every_trial_has_a_row(width: int, document: Comparison) -> None:
    text = table(document, width).split("what batching alone did")[0]
    rows = re.findall(r"^  (\S+)", text, re.MULTILINE)
    for batching in BATCHINGS:
        assert rows.count(batching) == 3


def test_marks_flags_and_failures(document: Comparison) -> None:
    text = table(document, 100)
    assert "  sorted-dynamic ●◆  72.9" in text
    assert "  sorted-dynamic ●★  43.4" in text
    assert "  single ≈ " in text
    assert "  fixed [a] " in text
    assert "[a] generated 1.14 times as many tokens" in text
    assert "failed: repeat 2 was ended by signal 9 after 31 s (out of memory?)" in text
    assert FAILED not in text
    assert "ctranslate2 int8 (ran as int8_float32; workers x threads: 2 x 1)" in text


def test_effects_stand_apart(document: Comparison) -> None:
    batching, quantization = (
        table(document, 160)
        .split("what batching alone did")[1]
        .split("what quantization alone did")
    )
    assert "\n  transformers float32\n    single → fixed " in batching
    assert "→ int8" not in batching
    assert "\n  ctranslate2 float32 → int8\n    single " in quantization


def test_says_what_speed_is_counted_from(document: Comparison) -> None:
    without = [trial for trial in document.trials if trial.batching != "single"]
    assert "speed up: run seconds of transformers float32 single / of the trial" in table(
        document, 100
    )
    assert "speed up: run seconds of transformers float32 fixed / of the trial" in table(
        replace(document, trials=tuple(without)), 100
    )


def test_piped_it_is_plain_and_a_terminal_gets_colours(document: Comparison) -> None:
    assert "\x1b" not in table(document, 100)
    assert "\x1b[" in table(document, 100, colour=True)


def test_figures_that_were_not_measured(document: Comparison) -> None:
    first, second, *others = document.trials
    nan = math.nan
    first = replace(
        first,
        speed={"generate_seconds": Spread(nan, nan, nan, (nan,))},
        quality={"cosine": Estimate(nan, nan, nan)},
    )
    changed = replace(document, trials=(first, replace(second, speed={}, quality={}), *others))
    text = table(changed, 160)
    assert "nan" not in text
    assert any(line.split()[:3] == ["single", "–", "–"] for line in text.split("\n"))


def test_nothing_measured(document: Comparison) -> None:
    trials = tuple(
        replace(trial, status="failed", reason="no memory", speed={}, quality={}, repeats=())
        for trial in document.trials[:2]
    )
    nothing = Recommendation("", "No trial ended well.", "", (), "")
    text = table(
        replace(document, trials=trials, effects=(), limits={}, recommendation=nothing), 100
    )
    assert text.count("failed: no memory") == 2
    assert "No recommendation\nNo trial ended well." in text


def test_no_trials_at_all(document: Comparison) -> None:
    nothing = Recommendation("", "", "", (), "")
    assert "0 trials" in table(
        replace(document, trials=(), effects=(), recommendation=nothing), 100
    )


def test_control_characters_do_not_reach_the_terminal(document: Comparison) -> None:
    hostile = "\x1b[31mred\x1b]0;title\x07\r\x9b2J [bold]markup[/bold]"
    trial = replace(document.trials[0], status="failed", reason=hostile)
    text = table(replace(document, trials=(trial,), model=hostile), 100)
    assert not any(ord(letter) < 0x20 and letter != "\n" for letter in text)
    assert "\x9b" not in text
    assert "[bold]markup[/bold]" in text
