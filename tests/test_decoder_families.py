"""Families on the engines made for them, through the command line: the texts are those of
`generate`. `benchmarks/families.py` runs more families and formats, and all on every engine."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decoder_families import VOCABULARY
from decoder_models import NEW_TOKENS, Expected, text_of
from family_verdicts import BAD, Cell, Model, judged

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "families.py"
BOTH = (
    "llama", "llama llama3", "mistral window", "qwen2", "qwen3", "gpt2", "llama, no bos or unk",
    "llama unused ids",
)  # fmt: skip
CTRANSLATE2 = (
    "gemma", "gemma2 no cap, no window", "gemma3", "gemma4", "gpt_bigcode", "gptj", "codegen",
    "bloom", "opt projected", "falcon 7b",
)  # fmt: skip
PACKED = (
    "phi4-mini", "smollm3 window", "granite", "glm", "starcoder2", "gemma2", "gemma3", "olmo3",
    "exaone4", "qwen3_moe",
)  # fmt: skip
PACKED_MORE = (
    "phi3 window", "phi3 longrope", "smollm3", "internlm3", "seed_oss", "ernie4_5", "helium",
    "ministral", "ministral3", "cwm", "iquestcoder", "arcee", "nemotron", "hyperclovax",
    "granite 4", "gemma", "gemma2 no cap", "gemma3 query scale", "gemma3 linear", "olmo2", "glm4",
    "llama hidden 72", "stablelm", "vaultgemma", "qwen3_moe window", "olmoe", "mixtral window",
    "granitemoe",
)  # fmt: skip
CASES: list[Any] = [(name, "ctranslate2 single") for name in (*BOTH, *CTRANSLATE2)]
CASES += [(name, "packed") for name in (*BOTH, *PACKED)]
CASES += [pytest.param(name, "packed", marks=pytest.mark.slow) for name in PACKED_MORE]
"""Each family that CTranslate2 or packed runs; rows longer than what an engine computes rightly may
be refused. `tests/models` has settings that converters lose, `tests/engines` families that
transformers alone runs."""


@pytest.fixture(scope="module")
def cells(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the benchmark finds for the families that were selected, each run in its own process."""
    chosen = {name for item in request.session.items if (name := _family(item))}
    engines = ["ctranslate2 single", "packed"]
    output = tmp_path_factory.mktemp("families") / "cells.json"
    given = [*sorted(chosen), "--engines", *engines, "--output", str(output)]
    command = [sys.executable, str(BENCHMARK), *given]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert output.is_file(), run.stderr
    document: dict[str, Any] = json.loads(output.read_text())
    return document


def _family(item: pytest.Item) -> str | None:
    """The family that a test of this file is about."""
    called = getattr(item, "callspec", None)
    return called.params.get("name") if called and item.path == Path(__file__) else None


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_answers_are_those_of_generate(cells: dict[str, Any], name: str, engine: str) -> None:
    cell = Cell(**cells[name]["engines"][engine])
    assert cell.verdict == "right", cell.reason


# How the benchmark judges.

PROMPT, TOKENS = [5, 9, 7], (30, 41, 12, 60, 8, 77, 25, 33, 80, 14)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """One row; at each step the best token's logit is 5, the others are 0."""
    logits = np.zeros((NEW_TOKENS, VOCABULARY), np.float32)
    logits[range(NEW_TOKENS), TOKENS] = 5
    return Model(tmp_path, tokens_named=True, prompts=[PROMPT], expected=[Expected(TOKENS, logits)])


def verdict(
    model: Model,
    text: str,
    *,
    finish_reason: str = "length",
    int8: bool = False,
    status: int | None = 0,
    log: str = "",
    error: dict[str, str] | None = None,
) -> Cell:
    row = {"text": text, "finish_reason": finish_reason, "error": error}
    output = model.folder / "output.jsonl"
    output.write_text(json.dumps(row) + "\n")
    return judged(status, log, output, model, int8=int8)


def test_the_text_of_generate_is_right(model: Model) -> None:
    assert verdict(model, text_of(TOKENS, tokens_named=True)).verdict == "right"


@pytest.mark.parametrize("place", [0, NEW_TOKENS - 1])
def test_another_token_is_wrong(model: Model, place: int) -> None:
    tokens = (*TOKENS[:place], 50, *TOKENS[place + 1 :])
    cell = verdict(model, text_of(tokens, tokens_named=True))
    assert (cell.verdict, cell.prefix) == ("WRONG", place / NEW_TOKENS)


@pytest.mark.parametrize(("cut", "finish_reason"), [(9, "length"), (9, "stop"), (10, "stop")])
def test_an_early_end_is_wrong(model: Model, cut: int, finish_reason: str) -> None:
    text = text_of(TOKENS[:cut], tokens_named=True)
    assert verdict(model, text, finish_reason=finish_reason).verdict == "WRONG"


def test_more_than_was_asked_for_is_wrong(model: Model) -> None:
    assert verdict(model, text_of((*TOKENS, 50), tokens_named=True)).verdict == "WRONG"


def test_an_end_token_ends_a_text(model: Model) -> None:
    ended = (*TOKENS[:4], 0)
    expected = Expected(ended, model.expected[0].logits[:5])
    model = replace(model, expected=[expected])
    text = text_of(ended, tokens_named=True)
    assert verdict(model, text, finish_reason="stop").verdict == "right"
    assert verdict(model, text).verdict == "WRONG"


def test_tokens_without_text_are_skipped(model: Model) -> None:
    silent = (*TOKENS[:4], 2, *TOKENS[5:])
    model = replace(model, expected=[Expected(silent, model.expected[0].logits)])
    assert verdict(model, text_of(silent, tokens_named=True)).verdict == "right"


def test_either_of_two_equal_logits_is_right(model: Model) -> None:
    model.expected[0].logits[-1, 50] = 5 - 5e-5
    text = text_of((*TOKENS[:-1], 50), tokens_named=True)
    assert verdict(model, text).verdict == "right"


def test_int8_may_take_what_is_nearly_as_probable(model: Model) -> None:
    model.expected[0].logits[7, 50] = 4.9
    text = text_of((*TOKENS[:7], 50, 51, 52), tokens_named=True)
    assert verdict(model, text, int8=True).verdict == "right"
    assert verdict(model, text).verdict == "WRONG"
    unlikely = text_of((*TOKENS[:7], 51, 51, 52), tokens_named=True)
    assert verdict(model, unlikely, int8=True).verdict == "WRONG"


@pytest.mark.parametrize(
    ("status", "log", "expected"),
    [
        (2, "packhorse: no such model\n  hint: name another\n", "refused"),
        (2, "usage: packhorse run", "FAILED"),
        (1, "Traceback (most recent call last):\nKeyError: 'x'\n", "TRACEBACK"),
        (-6, "malloc(): invalid size\n", "ABORT"),
        (None, "loading\n", "TIMEOUT"),
        (1, "", "FAILED"),
    ],
)
def test_how_a_run_ended(model: Model, status: int | None, log: str, expected: str) -> None:
    cell = verdict(model, "", status=status, log=log)
    assert cell.verdict == expected
    assert (expected in BAD) == (expected != "refused")


@pytest.mark.parametrize(
    ("code", "expected"), [("prompt_too_long", "refused"), ("engine_error", "FAILED")]
)
def test_rows_that_failed(model: Model, code: str, expected: str) -> None:
    error = {"code": code, "message": "it is long"}
    cell = verdict(model, "", status=3, error=error)
    assert (cell.verdict, cell.reason, cell.refused_rows) == (expected, "it is long", 1)
