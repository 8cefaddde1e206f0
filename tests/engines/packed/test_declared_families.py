"""Families of every form: right tokens, and the same bits in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from decoder_families import TRAINED
from decoder_models import NEW_TOKENS, Judge, build, prompts, token_ids_of
from packhorse.data import Batch, EngineOutput, Failure, Prompt, SamplingParams, Scores
from packhorse.decoders import FAMILIES, refusal
from packhorse.engines.packed import PackedEngine
from packhorse.engines.packed.int8_writer import write_int8
from transformers_families import FAMILIES as MODELS

FORMS = (
    "phi4-mini", "gemma2", "olmo3", "glm4", "starcoder2", "ministral3", "llama hidden 72",
    "qwen3_moe", "granitemoe",
)  # fmt: skip
GREEDY = SamplingParams(max_new_tokens=NEW_TOKENS, top_log_probs=2)


def engine_of(folder: Path, quantization: str, **options: Any) -> PackedEngine:
    return PackedEngine(
        folder, end_ids=(), max_context=256, quantization=quantization, threads=1,
        **{"max_num_seqs": 16, "max_num_batched_tokens": 64, **options},
    )  # fmt: skip


def answers(engine: PackedEngine, rows: list[list[int]], prefix: int = 0) -> dict[int, Any]:
    """Tokens and log-probabilities of rows that run together."""
    batch = Batch(tuple(Prompt(n, tuple(ids), GREEDY) for n, ids in enumerate(rows)), prefix)
    found = {}
    for result in engine.run(iter([batch])):
        assert isinstance(result, EngineOutput), result
        found[result.index] = (result.token_ids, result.log_probs)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["float32", "int8"])
@pytest.mark.parametrize("name", FORMS)
def test_a_row_gives_the_same_bits_in_any_company(
    name: str, quantization: str, tmp_path: Path
) -> None:
    build(MODELS[name], tmp_path)
    rows = token_ids_of(tmp_path, prompts())
    shared = rows[0][:7]
    rows += [[*shared, *ids] for ids in rows[1:6]]
    folder = tmp_path
    if quantization == "int8":
        folder = tmp_path / "int8"
        folder.mkdir()
        write_int8(tmp_path, folder)
    engine = engine_of(folder, quantization)
    together = answers(engine, rows)
    with_prefix = answers(engine, [rows[0], *rows[-5:]], prefix=len(shared))
    for number, ids in enumerate(rows):
        assert answers(engine, [ids])[0] == together[number]
    for place, number in enumerate(range(len(rows) - 5, len(rows)), 1):
        assert with_prefix[place] == together[number]
    engine.close()


@pytest.mark.parametrize("length", [TRAINED - 1, TRAINED, TRAINED + 1])
def test_a_row_that_grows_beyond_the_trained_length_is_computed_anew(
    length: int, tmp_path: Path
) -> None:
    build(MODELS["phi4-mini"], tmp_path)
    ids = token_ids_of(tmp_path, prompts())
    beginning = max(ids, key=len)[:length]
    engine = engine_of(tmp_path, "float32")
    rows = [beginning, [*beginning[:20], 9, 9], [*beginning[:20], 9, *beginning]]
    found = answers(engine, rows, prefix=20)
    engine.close()
    judge = Judge(tmp_path)
    for number, row in enumerate(rows):
        expected = judge.expected(row).token_ids
        assert found[number][0][: len(expected)] == expected


def test_continuations_across_the_trained_length_are_refused(tmp_path: Path) -> None:
    build(MODELS["phi4-mini"], tmp_path)
    ids = max(token_ids_of(tmp_path, prompts()), key=len)
    lengths = (TRAINED - 4, TRAINED - 3, TRAINED + 1)
    rows = tuple(Prompt(n, tuple(ids[:length]), GREEDY) for n, length in enumerate(lengths))
    engine = engine_of(tmp_path, "float32")
    found = {each.index: each for each in engine.score(iter([Batch(rows)]), [(5, 6, 7, 8, 9)])}
    engine.close()
    assert [isinstance(found[n], Scores) for n in range(3)] == [True, False, True]
    assert isinstance(found[1], Failure)
    assert f"exceed the {TRAINED} tokens" in found[1].message


@pytest.mark.parametrize("family", FAMILIES)
def test_a_setting_that_no_description_reads_is_refused(family: str) -> None:
    """As one that a later version of transformers adds."""
    config = transformers.AutoConfig.for_model(family)
    if family == "granitemoehybrid":
        config.num_local_experts, config.layer_types = 0, ["attention"] * config.num_hidden_layers
    assert refusal(config) is None
    added = {"__annotations__": {"new_multiplier": float}, "new_multiplier": 0.0}
    changed = type(type(config).__name__, (type(config),), added)
    config.__class__ = changed
    assert refusal(config) is None
    config.new_multiplier = 0.5
    assert refusal(config) == f"new_multiplier 0.5 in a {family} model"
