"""`Model.generate` from several threads and interleaved, on every engine that runs a model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import packhorse
from packhorse import Completion, EngineConfig, Failure, Model

JOBS = [[f"{word} number {place} " * (1 + place % 4) for place in range(7)] for word in "abcd"]


@pytest.fixture(scope="module", params=["transformers", "packed", "ctranslate2", "fake"])
def model(request: pytest.FixtureRequest, built: dict[str, Path]) -> Iterator[Model]:
    name = "fake" if request.param == "fake" else str(built["llama"])
    engine = EngineConfig(request.param, quantization="float32", threads=1)
    with packhorse.load(name, engine=engine) as loaded:
        yield loaded


def texts(outcomes: Iterator[Completion | Failure]) -> dict[int, str]:
    found = {}
    for outcome in outcomes:
        assert isinstance(outcome, Completion), outcome
        found[outcome.index] = outcome.text
    return found


@pytest.fixture(scope="module")
def expected(model: Model) -> list[dict[int, str]]:
    return [texts(model.generate(prompts, max_new_tokens=9)) for prompts in JOBS]


def test_threads(model: Model, expected: list[dict[int, str]]) -> None:
    with ThreadPoolExecutor(len(JOBS)) as pool:
        for _ in range(3):
            found = pool.map(lambda some: texts(model.generate(some, max_new_tokens=9)), JOBS)
            assert list(found) == expected


def test_interleaved(model: Model, expected: list[dict[int, str]]) -> None:
    calls = [model.generate(prompts, max_new_tokens=9) for prompts in JOBS]
    found: list[dict[int, str]] = [{} for _ in JOBS]
    left = set(range(len(JOBS)))
    while left:
        for number in list(left):
            outcome = next(calls[number], None)
            if outcome is None:
                left.discard(number)
            else:
                assert isinstance(outcome, Completion)
                found[number][outcome.index] = outcome.text
    assert found == expected


def test_one_call_ends_inside_another(model: Model, expected: list[dict[int, str]]) -> None:
    """As in: for answer in generate(...): generate([f"check {answer}"])."""
    outer: dict[int, str] = {}
    for outcome in model.generate(JOBS[0], max_new_tokens=9):
        assert isinstance(outcome, Completion)
        outer[outcome.index] = outcome.text
        assert texts(model.generate(JOBS[1][:2], max_new_tokens=9)) == {
            index: expected[1][index] for index in (0, 1)
        }
    assert outer == expected[0]
