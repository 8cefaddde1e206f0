"""The engine without a model."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from subjects import codes, in_batches, run, tokens

from packhorse.config import EngineConfig
from packhorse.data import EngineOutput, Prompt, SamplingParams
from packhorse.engines import load_engine
from packhorse.engines.fake import DELAY_VARIABLE, FakeEngine, Faults
from packhorse.errors import ConfigError, EngineError
from packhorse.models import model_facts
from packhorse.models.prepared import model_without_files
from packhorse.tokenization import ByteCodec


def prompts(rows: int, **decoding: Any) -> list[Prompt]:
    return [
        Prompt(
            index,
            tuple(f"row {index}".encode()),
            SamplingParams(**{"max_new_tokens": 40, **decoding}),
        )
        for index in range(rows)
    ]


def texts(rows: list[Prompt], **options: Any) -> dict[int, str]:
    results = tokens(run(FakeEngine(**options), rows, 4))
    return {index: ByteCodec().decode(ids) for index, ids in results.items()}


def test_it_writes_words_that_never_change() -> None:
    assert texts(prompts(2, max_new_tokens=200)) == {
        0: "counts one a under one the climbs slowly again under a steadily load a mule one counts "
        "over agai",
        1: "carries mu",
    }


def test_the_limit_only_cuts() -> None:
    whole = texts(prompts(20, max_new_tokens=200))
    assert texts(prompts(20)) == {index: text[:40] for index, text in whole.items()}
    assert all(text.isascii() and text for text in whole.values())
    assert len(set(whole.values())) == 20
    assert any(len(text) < 40 for text in whole.values())


@pytest.mark.parametrize(
    ("faults", "failed"),
    [
        (Faults(), {}),
        (Faults(fail_rows=frozenset({3, 7})), {3: "engine_error", 7: "engine_error"}),
        (Faults(fail_batches_larger_than=2), {}),
        (Faults(oom_over_tokens=100), {}),
        (Faults(oom_over_tokens=20), dict.fromkeys(range(9), "out_of_memory")),
    ],
)
def test_faults(faults: Faults, failed: dict[int, str]) -> None:
    results = run(FakeEngine(faults=faults, workers=2), prompts(9), 9)
    assert codes(results) == dict.fromkeys(range(9), "") | failed
    clean = texts(prompts(9))
    for index, result in results.items():
        if isinstance(result, EngineOutput):
            assert ByteCodec().decode(result.token_ids) == clean[index]


def test_it_dies_on_demand() -> None:
    engine = FakeEngine(faults=Faults(crash_after_rows=5))
    results = engine.run(in_batches(prompts(9), 3))
    assert len([next(results) for _ in range(5)]) == 5
    with pytest.raises(EngineError, match="died after 5 rows"):
        next(results)


def test_waits_are_a_step_and_a_batch() -> None:
    started = time.monotonic()
    run(FakeEngine(seconds_per_token=0.01, seconds_per_batch=0.05), prompts(8, max_new_tokens=4), 4)
    elapsed = time.monotonic() - started
    assert 0.17 <= elapsed < 1


def test_workers_take_turns() -> None:
    order = [
        result.index
        for result in FakeEngine(workers=2).run(in_batches(prompts(4, max_new_tokens=3), 2))
    ]
    assert order == [0, 1, 2, 3]
    slow_first = [*prompts(1, max_new_tokens=9), *prompts(3, max_new_tokens=3)[1:]]
    finished = [result.index for result in FakeEngine(workers=2).run(in_batches(slow_first, 1))]
    assert finished == [1, 2, 0]


def test_loaded_by_name_it_can_be_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = model_without_files("anything", "fake")
    monkeypatch.setenv(DELAY_VARIABLE, "0.02")
    engine = load_engine(prepared, model_facts(prepared), EngineConfig(engine="fake", workers=3))
    assert (engine.capabilities.workers, engine.capabilities.name) == (3, "fake")
    started = time.monotonic()
    run(engine, prompts(1, max_new_tokens=5), 1)
    assert time.monotonic() - started >= 0.1


def test_it_needs_no_library() -> None:
    script = (
        "import sys; from packhorse.engines import loader_named; loader_named('fake');"
        "print(sorted({'torch', 'transformers', 'ctranslate2', 'numpy'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_an_unknown_engine_lists_the_known_ones() -> None:
    from packhorse.engines import loader_named

    with pytest.raises(ConfigError, match="unknown engine 'vllm'") as error:
        loader_named("vllm")
    assert error.value.hint == "known: transformers, ctranslate2, packed, fake"
