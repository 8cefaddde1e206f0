"""Every policy on real engines: what a row answers does not depend on how it was batched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import packhorse
import tiny_models
from packhorse import BatchingConfig, EngineConfig, JobConfig
from packhorse.batching import POLICIES
from packhorse.data import Completion, SamplingParams
from packhorse.inference.model import Model, load_prepared, prepare_for

EXAMPLES = Path(__file__).parents[1] / "examples" / "prompts.jsonl"
CALIBRATED = BatchingConfig("planned")


def answers(model: Model, prompts: list[str], policy: str) -> dict[int, tuple[int, ...]]:
    """Generated token ids by position, under one policy."""
    batching = BatchingConfig(policy, batch_size=3, max_batch_tokens=700)
    chosen = Model(model.prepared, model.engine, model.codec, batching, model.calibration)
    found = {}
    for outcome in chosen.generate(prompts, max_new_tokens=8):
        assert isinstance(outcome, Completion), outcome
        found[outcome.index] = outcome.token_ids
    assert len(found) == len(prompts)
    return found


@pytest.mark.parametrize("engine", ["transformers", "ctranslate2"])
def test_policies_agree_on_a_small_gpt2(engine: str, tmp_path: Path) -> None:
    """Absolute positions: the classic victim of left padding."""
    folder = tiny_models.tiny_gpt2(tmp_path / "gpt2")
    prompts = ["the " * (1 + i * 7 % 30) + f"row {i}" for i in range(12)]
    config = EngineConfig(engine)
    with load_prepared(prepare_for(str(folder), config), config, CALIBRATED) as model:
        expected = answers(model, prompts, "single")
        assert len(set(expected.values())) > len(prompts) // 2
        for policy in POLICIES:
            assert answers(model, prompts, policy) == expected, policy


@pytest.mark.parametrize("engine", ["transformers", "ctranslate2"])
def test_policies_agree_on_the_demonstration_model(engine: str, demo_model_folder: Path) -> None:
    rows = [json.loads(line) for line in EXAMPLES.read_text().splitlines()]
    prompts = [row["prompt"] for row in rows if len(row.get("prompt", "x" * 999)) < 300][:5]
    config = EngineConfig(engine)
    with load_prepared(prepare_for(str(demo_model_folder), config), config, CALIBRATED) as model:
        expected = answers(model, prompts, "single")
        for policy in POLICIES:
            assert answers(model, prompts, policy) == expected, policy


def test_int8_says_what_really_ran_and_every_row_comes_back(
    demo_model_folder: Path, tmp_path: Path
) -> None:
    report = packhorse.run(
        JobConfig(
            model=str(demo_model_folder),
            input=str(EXAMPLES),
            output=tmp_path / "out.jsonl",
            engine=EngineConfig("ctranslate2", quantization="int8", quantization_method="plain"),
            decoding=SamplingParams(max_new_tokens=4),
            reading=packhorse.InputConfig(limit=16),
        )
    )
    rows = [json.loads(line) for line in report.output.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"ex-{i:03}" for i in range(1, 17)]
    assert report.counts.completed == 16
    assert report.resolved is not None
    assert report.resolved["compute_type"].startswith("int8")
    assert report.resolved["compute_type"] != "int8"


def test_an_int_format_the_processor_lacks_is_a_clear_error(
    demo_model_folder: Path, tmp_path: Path
) -> None:
    import ctranslate2

    absent = {"int16", "float16", "bfloat16"} - ctranslate2.get_supported_compute_types("cpu")
    if not absent:
        pytest.skip("this processor runs every format")
    folder = tiny_models.tiny_llama(tmp_path / "llama")
    config = EngineConfig("ctranslate2", quantization=min(absent))
    with pytest.raises(packhorse.PackhorseError, match="does not run"):
        load_prepared(prepare_for(str(folder), config), config, BatchingConfig())
