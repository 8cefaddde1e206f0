"""The CTranslate2 engine: what it refuses, what it survives, and what it keeps the library from."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
from subjects import (
    Subject,
    alone,
    codes,
    converted,
    in_batches,
    run,
    tokens,
    with_decoding,
)
from transformers import LlamaConfig

import packhorse
from packhorse.config import EngineConfig
from packhorse.data import Batch, EngineOutput, Prompt, SamplingParams
from packhorse.engines import load_engine
from packhorse.engines.common.rows import Row
from packhorse.engines.ctranslate2 import log_probs
from packhorse.engines.ctranslate2.engine import CTranslate2Engine
from packhorse.engines.ctranslate2.seeded import NO_SEED, ROWS_PER_LOAD, as_32_bits
from packhorse.engines.transformers.engine import TransformersEngine
from packhorse.errors import EngineError, ModelError
from packhorse.models import model_facts, prepare
from random_models import LLAMA3, SIZES, saved

ROWS = Subject("rows", CTranslate2Engine, range(3, 300), (2,))


@pytest.fixture(scope="session")
def folder(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(built["llama"], tmp_path_factory.mktemp("ct2") / "llama")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def engine_of(folder: Path, **options: Any) -> CTranslate2Engine:
    defaults = {"end_ids": (2,), "max_context": 256, "device": "cpu"}
    return CTranslate2Engine(folder, **{**defaults, **options})


def test_traits(folder: Path) -> None:
    capabilities = engine_of(folder, workers=3).capabilities
    assert (capabilities.name, capabilities.cost_rule) == ("ctranslate2", "min-prefix-prefill")
    assert (capabilities.workers, capabilities.threads) == (3, 1)
    assert (capabilities.compute_type, capabilities.mixed_decoding) == ("float32", False)
    assert capabilities.model_bytes == (folder / "model.bin").stat().st_size
    layers, query_heads, head_size = 2, 4, 16
    assert capabilities.cache_bytes_per_token == layers * 2 * query_heads * head_size * 4


def test_the_compute_type_is_what_runs(folder: Path) -> None:
    capabilities = engine_of(folder, quantization="int8").capabilities
    assert capabilities.compute_type == "int8_float32"
    assert capabilities.model_bytes == (folder / "model.bin").stat().st_size // 4


def test_loaded_with_the_facts_of_its_folder(built: dict[str, Path], folder: Path) -> None:
    prepared = prepare(str(folder), engine="ctranslate2")
    engine = load_engine(prepared, model_facts(prepared), EngineConfig(device="cpu", workers=2))
    prompts = ROWS.prompts(4)
    assert engine.capabilities.max_context == 256
    assert alone(engine, prompts) == alone(engine_of(folder), prompts)


@pytest.mark.slow
def test_rotations_of_llama_3_answer_as_with_transformers(tmp_path: Path) -> None:
    """Past the 64 positions the model was made for before its rotations were scaled."""
    config = LlamaConfig(**{**SIZES, "vocab_size": 300, "head_dim": 20}, rope_parameters=LLAMA3)
    saved(config, tmp_path)
    options: dict[str, Any] = {"end_ids": (), "max_context": 128, "device": "cpu"}
    prompts = ROWS.prompts(12, max_new_tokens=60)
    expected = alone(TransformersEngine(tmp_path, threads=1, **options), prompts)
    engine = CTranslate2Engine(converted(tmp_path, tmp_path / "ct2"), **options)
    assert tokens(run(engine, prompts, 5)) == expected
    assert len(set(expected.values())) == 12


def unsupported() -> str:
    known = ("int16", "float16", "bfloat16", "int8_float16", "int8_bfloat16")
    return next(
        name for name in known if name not in ctranslate2.get_supported_compute_types("cpu")
    )


def test_an_unsupported_compute_type_lists_the_supported(folder: Path) -> None:
    name = unsupported()
    with pytest.raises(EngineError, match=f"does not run {name} on this cpu") as error:
        engine_of(folder, quantization=name)
    assert {"float32", "int8"} <= set(error.value.hint.replace(",", "").split())


@pytest.mark.skipif(ctranslate2.get_cuda_device_count() > 0, reason="there is a GPU")
def test_a_gpu_that_is_not_there(folder: Path) -> None:
    assert engine_of(folder, device="auto").capabilities.device == "cpu"
    with pytest.raises(EngineError, match="no CUDA device"):
        engine_of(folder, device="cuda")


def truncate(folder: Path) -> None:
    weights = folder / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-1000])


def empty(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"")


def remove_vocabulary(folder: Path) -> None:
    (folder / "vocabulary.json").unlink()


def shorten_vocabulary(folder: Path) -> None:
    path = folder / "vocabulary.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:-7]))


def poison(folder: Path) -> None:
    data = bytearray((folder / "model.bin").read_bytes())
    name = b"decoder/layer_norm/gamma\0"
    start = data.index(name) + len(name) + 1 + 4 + 1 + 4
    data[start : start + 64 * 4] = np.full(64, np.nan, np.float32).tobytes()
    (folder / "model.bin").write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [truncate, empty, remove_vocabulary, shorten_vocabulary, poison])
def test_a_damaged_folder_is_a_model_error(copied: Path, damage: Callable[[Path], None]) -> None:
    damage(copied)
    with pytest.raises(ModelError) as error:
        engine_of(copied)
    assert str(copied) in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.hint


def test_an_old_vocabulary_of_lines(copied: Path, folder: Path) -> None:
    listed = json.loads((copied / "vocabulary.json").read_text())
    (copied / "vocabulary.json").unlink()
    (copied / "vocabulary.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    prompts = ROWS.prompts(5)
    assert alone(engine_of(copied), prompts) == alone(engine_of(folder), prompts)


def test_a_prompt_of_one_token_does_not_spoil_its_batch(folder: Path) -> None:
    """CTranslate2 would give back the other rows' prompts as if they were generated."""
    engine = engine_of(folder)
    prompts = [
        Prompt(index, tuple(range(10, 10 + length)), SamplingParams(6))
        for index, length in enumerate((1, 4, 1, 30, 2))
    ]
    assert tokens(run(engine, prompts, 5)) == alone(engine, prompts)


def test_without_end_tokens_rows_reach_their_limit(folder: Path) -> None:
    results = run(engine_of(folder, end_ids=()), ROWS.prompts(200, max_new_tokens=60), 50)
    assert {len(ids) for ids in tokens(results).values()} == {60}
    assert any(2 in ids for ids in tokens(results).values())


def test_more_seeded_rows_than_one_load_has_workers(folder: Path) -> None:
    engine = engine_of(folder, workers=3)
    prompts = [
        Prompt(index, (5, 6, 7), SamplingParams(9, temperature=1.0, seed=index % 5))
        for index in range(3 * ROWS_PER_LOAD + 1)
    ]
    results = tokens(run(engine, prompts, 1))
    assert len(set(results.values())) == 5
    assert all(results[index] == results[index % 5] for index in results)


def test_a_seeded_row_that_fails_does_not_spoil_the_next(
    built: dict[str, Path], tmp_path: Path
) -> None:
    engine = engine_of(converted(built["gpt2"], tmp_path / "gpt2"), max_context=600)
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 3}
    good = [Prompt(index, (5, 6, 7), SamplingParams(9, **sampling)) for index in range(6)]
    too_long = [
        Prompt(6, (9,) * 300, SamplingParams(4, **sampling)),
        Prompt(7, (9,) * 250, SamplingParams(40, **sampling)),
    ]
    mixed = [good[0], too_long[0], *good[1:3], too_long[1], *good[3:]]
    results = run(engine, mixed, 1)
    assert [getattr(results.pop(index), "code", "") for index in (6, 7)] == ["engine_error"] * 2
    assert len(set(tokens(results).values())) == 1


@pytest.mark.parametrize(
    ("seed", "same"), [(0, True), (41, True), (NO_SEED - 1, True), (NO_SEED, False), (-1, False)]
)
def test_seeds_of_32_bits(seed: int, same: bool) -> None:
    assert (as_32_bits(seed) == seed) is same
    assert 0 <= as_32_bits(seed) < NO_SEED


def asking(rows: int, **decoding: Any) -> list[Prompt]:
    return ROWS.prompts(rows, seed=7, max_new_tokens=40, top_log_probs=2, **decoding)


def test_batches_that_ask_for_log_probs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that run together never keep more logits than allowed, and all of them run."""
    monkeypatch.setattr(log_probs, "KEPT_BYTES", 4 * 300 * 500)
    monkeypatch.setattr(log_probs, "LEAST_STEPS", 30)
    rows = [Row(prompt) for prompt in asking(40)]
    seen = []
    for group, steps in log_probs.bounded(rows, 300):
        lengths = [len(row.sequence) for row in group]
        assert lengths == sorted(lengths, reverse=True)
        assert len(group) * (lengths[0] - lengths[-1] + steps) <= 500
        assert steps >= 30
        seen += [row.prompt.index for row in group]
    assert sorted(seen) == list(range(40))
    assert len(list(log_probs.bounded(rows[:1], 300))) == 1


@pytest.mark.parametrize("steps", [7, 90])
def test_rows_go_on_when_their_logits_fill_the_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    engine, prompts = engine_of(folder), asking(9)
    expected = run(engine, prompts, 9)
    monkeypatch.setattr(log_probs, "KEPT_BYTES", 4 * 300 * steps)
    monkeypatch.setattr(log_probs, "LEAST_STEPS", 5)
    found = run(engine, prompts, 9)
    assert tokens(found) == tokens(expected)
    for index, result in found.items():
        other = expected[index]
        assert isinstance(result, EngineOutput)
        assert isinstance(other, EngineOutput)
        pairs = zip(result.log_probs or (), other.log_probs or (), strict=True)
        for one, two in pairs:
            assert one.log_prob == pytest.approx(two.log_prob, abs=1e-4)
    seeded = [with_decoding(prompt, temperature=1.0, seed=1) for prompt in prompts]
    refused = dict.fromkeys(range(9), "bad_option" if steps < 40 else "")
    assert codes(run(engine, seeded, 9)) == refused


def test_rows_without_a_seed_follow_the_probabilities(folder: Path) -> None:
    count, top_k = 4000, 5
    engine = engine_of(folder)
    prompt = (11, 12, 13)
    sampling = SamplingParams(1, temperature=2.0, top_k=top_k)
    prompts = [Prompt(index, prompt, sampling) for index in range(count)]
    found = Counter(ids[0] for ids in tokens(run(engine, prompts, 500)).values())
    generator = ctranslate2.Generator(str(folder), device="cpu")
    logits = np.array(generator.forward_batch([list(prompt)]))[0, -1]
    best = np.argsort(-logits)[:top_k]
    weights = np.exp(logits[best] / 2.0)
    shares = weights / weights.sum()
    assert set(found) <= set(best.tolist())
    for token, share in zip(best.tolist(), shares.tolist(), strict=True):
        assert abs(found[token] / count - share) < 4.5 * math.sqrt(share * (1 - share) / count)


EXIT_SCRIPT = """
import sys
from pathlib import Path
from packhorse.data import Batch, SamplingParams, Prompt
from packhorse.engines.ctranslate2.engine import CTranslate2Engine

engine = CTranslate2Engine(Path(sys.argv[1]), end_ids=(), max_context=256, device="cpu", workers=2)
sampling = dict(temperature=1.0, seed=1) if "seeded" in sys.argv else {}
batches = (Batch((Prompt(n, (5, 6 + n), SamplingParams(100, **sampling)),)) for n in range(20))
results = engine.run(batches)
if "suspended" in sys.argv:
    for _ in range(10):
        next(results)
else:
    assert len(list(results)) == 20
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], ["suspended"], ["seeded"], ["seeded", "suspended"]], ids=str)
def test_the_process_ends_without_aborting(folder: Path, mode: list[str]) -> None:
    """CTranslate2's workers may still destroy callbacks when results are there."""
    for _ in range(3):
        ended = subprocess.run(
            [sys.executable, "-c", EXIT_SCRIPT, str(folder), *mode],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"PYTHONPATH": str(Path(packhorse.__file__).parents[1]), "PATH": ""},
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_rows_come_as_they_finish(folder: Path) -> None:
    engine = engine_of(folder, workers=1, end_ids=())
    limits = (120, 1, 60, 2)
    rows = tuple(
        Prompt(index, (5, 6, 7), SamplingParams(limit)) for index, limit in enumerate(limits)
    )
    order = [result.index for result in engine.run(iter([Batch(rows)]))]
    assert order == [1, 3, 2, 0]


def test_several_batches_run_at_once(folder: Path) -> None:
    engine = engine_of(folder, workers=2, end_ids=())
    spans = [
        result.timing
        for result in engine.run(in_batches(ROWS.prompts(4, max_new_tokens=190), 2))
        if isinstance(result, EngineOutput)
    ]
    assert max(span.submitted for span in spans) < min(span.finished for span in spans)
