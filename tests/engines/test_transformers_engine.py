"""The transformers engine: what it refuses, what it survives, and that it equals `generate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from subjects import Subject, alone, codes, in_batches, run, tokens

import tiny_models
from packhorse.config import EngineConfig
from packhorse.data import Batch, EngineOutput, Failure, Prompt, SamplingParams
from packhorse.engines import load_engine
from packhorse.engines.transformers.engine import TransformersEngine
from packhorse.engines.transformers.padded_batch import PaddedBatch
from packhorse.errors import EngineError, ModelError
from packhorse.models import model_facts, prepare
from packhorse.models.quiet import quiet_transformers

ROWS = Subject("rows", TransformersEngine, range(3, 290), (2,))


def engine_of(folder: Path, **options: Any) -> TransformersEngine:
    defaults = {"end_ids": (2,), "max_context": 256, "device": "cpu", "threads": 1}
    return TransformersEngine(folder, **{**defaults, **options})


def generated(folder: Path, prompts: list[Prompt], end_id: int) -> dict[int, tuple[int, ...]]:
    """What `model.generate` of transformers makes of each prompt alone."""
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
    found = {}
    for prompt in prompts:
        ids = torch.tensor([prompt.token_ids])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=prompt.decoding.max_new_tokens,
            eos_token_id=end_id,
            pad_token_id=0,
        )
        new = output[0, ids.shape[1] :].tolist()
        found[prompt.index] = tuple(new[: new.index(end_id)] if end_id in new else new)
    return found


def small(kind: str, folder: Path) -> Path:
    """Small random models of families whose caches or positions are special."""
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    named = dict.fromkeys(("vocab_size", "hidden_size", "pad_token_id", "eos_token_id"))
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(0)
        model: Any
        if kind == "sliding window":
            config = transformers.MistralConfig(**sizes, sliding_window=8)
            model = transformers.MistralForCausalLM(config)
        elif kind == "alibi":
            few = {name: sizes[name] for name in named}
            bloom = transformers.BloomConfig(**few, n_layer=2, n_head=4)
            model = transformers.BloomForCausalLM(bloom)
        else:
            opt = transformers.OPTConfig(
                **{name: sizes[name] for name in (*named, "num_attention_heads")},
                ffn_dim=64,
                num_hidden_layers=2,
                max_position_embeddings=256,
                word_embed_proj_dim=32,
            )
            model = transformers.OPTForCausalLM(opt)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data.normal_(0, 0.4)
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_batches_equal_generate(built: dict[str, Path], name: str) -> None:
    end = {"llama": 2, "gpt2": 0}[name]
    prompts = ROWS.prompts(10, seed=4)
    engine = engine_of(built[name], end_ids=(end,))
    assert tokens(run(engine, prompts, 5)) == generated(built[name], prompts, end)


@pytest.mark.parametrize("kind", ["sliding window", "alibi", "offset positions"])
def test_other_families_equal_generate(tmp_path: Path, kind: str) -> None:
    folder = small(kind, tmp_path / "model")
    prompts = ROWS.prompts(10, seed=5)
    assert tokens(run(engine_of(folder), prompts, 5)) == generated(folder, prompts, 2)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_cache_gives_the_logits_of_transformers_own(built: dict[str, Path], name: str) -> None:
    """Rows leave, padding is dropped and buffers grow: logits stay those of one long prefill."""
    model = engine_of(built[name])._model
    assert model is not None
    sequences = [[7, 8, 9], [20 + n for n in range(30)], [5], [50 + n for n in range(12)]]
    batch = PaddedBatch(model, sequences, pad_id=0)
    logits = batch.prefill()
    leaving = {2: [0, 2, 3], 5: [1, 2], 40: [0]}
    for step in range(60):
        for row, sequence in enumerate(sequences):
            alone = model(torch.tensor([sequence])).logits[0, -1]
            torch.testing.assert_close(logits[row], alone, rtol=1e-4, atol=1e-4)
        if step in leaving:
            sequences = [sequences[row] for row in batch.keep(leaving[step])]
        for row, sequence in enumerate(sequences):
            sequence.append((step * 7 + row * 31) % 300)
        logits = batch.step([sequence[-1] for sequence in sequences])


class Forwards:
    """Tokens and logits positions of every forward pass of an engine's model."""

    def __init__(self, engine: TransformersEngine) -> None:
        assert engine._model is not None
        self.seen: list[tuple[int, int]] = []
        engine._model.register_forward_hook(self._look, with_kwargs=True)

    def _look(self, model: Any, inputs: Any, options: dict[str, Any], output: Any) -> None:
        self.seen.append((options["input_ids"].shape[1], output.logits.shape[1]))


def sharing(engine: TransformersEngine, prefix: int) -> list[int]:
    """Answers two batches of rows that share `prefix` tokens; widths of their forward passes."""
    forwards = Forwards(engine)
    head = tuple(range(10, 10 + prefix))
    rows = [Prompt(n, (*head, 60 + n, 70), SamplingParams(max_new_tokens=1)) for n in range(4)]
    batches = [Batch(tuple(rows[:2]), prefix), Batch(tuple(rows[2:]), prefix)]
    assert len([r for r in engine.run(iter(batches)) if isinstance(r, EngineOutput)]) == 4
    assert {logits for _, logits in forwards.seen} == {1}, "logits nobody reads"
    return [width for width, _ in forwards.seen]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_shared_prefix_is_computed_once(built: dict[str, Path], name: str) -> None:
    engine = engine_of(built[name])
    assert engine.capabilities.shares_prefixes
    assert sharing(engine, 40) == [40, 2, 2]


def test_a_prefix_no_model_can_go_on_from_is_not_computed(tmp_path: Path) -> None:
    engine = engine_of(small("sliding window", tmp_path / "model"))
    assert not engine.capabilities.shares_prefixes
    assert sharing(engine, 40) == [42, 42]


def test_traits(built: dict[str, Path]) -> None:
    capabilities = engine_of(built["llama"]).capabilities
    weights = sum(path.stat().st_size for path in built["llama"].glob("*.safetensors"))
    assert (capabilities.name, capabilities.cost_rule, capabilities.workers) == (
        "transformers",
        "padded",
        1,
    )
    assert capabilities.cache_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert 0.9 < capabilities.model_bytes / weights < 1.1
    half = engine_of(built["llama"], quantization="bfloat16").capabilities
    assert (half.compute_type, half.cache_bytes_per_token) == ("bfloat16", 2 * 2 * 2 * 16 * 2)


@pytest.mark.parametrize("quantization", ["bfloat16", "float16"])
def test_half_precision_runs(built: dict[str, Path], quantization: str) -> None:
    engine = engine_of(built["llama"], quantization=quantization)
    prompts = ROWS.prompts(6, temperature=0.8, seed=1)
    assert len(tokens(run(engine, prompts, 3))) == 6


def test_loaded_with_the_facts_of_its_folder(built: dict[str, Path]) -> None:
    prepared = prepare(str(built["llama"]), engine="transformers")
    config = EngineConfig(engine="transformers", device="cpu", threads=1)
    engine = load_engine(prepared, model_facts(prepared), config)
    prompts = ROWS.prompts(4)
    assert engine.capabilities.max_context == tiny_models.MAX_CONTEXT
    assert alone(engine, prompts) == generated(built["llama"], prompts, 2)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"quantization": "int8"}, "does not run int8", "--engine ctranslate2"),
        ({"quantization": "int8_float32"}, "float32, bfloat16, float16", "ctranslate2"),
        ({"device": "cuda"}, "no CUDA device", "--device cpu"),
    ],
)
def test_what_it_cannot_do(
    built: dict[str, Path], options: dict[str, Any], message: str, hint: str
) -> None:
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(EngineError, match=message) as error:
        engine_of(built["llama"], **options)
    assert hint in error.value.hint


def test_it_runs_one_batch_at_a_time(built: dict[str, Path]) -> None:
    prepared = prepare(str(built["llama"]), engine="transformers")
    with pytest.raises(EngineError, match="one batch at a time, not 2"):
        load_engine(prepared, model_facts(prepared), EngineConfig(workers=2))


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def forget_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def poison(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 256}))


def scribble(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "damage", [truncate, forget_a_weight, poison, widen, scribble, remove_weights]
)
def test_a_damaged_folder_is_a_model_error(
    tiny: Callable[[str], Path], damage: Callable[[Path], None]
) -> None:
    folder = tiny("llama")
    damage(folder)
    with pytest.raises(ModelError) as error:
        engine_of(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.hint


def test_rows_without_numbers_are_failures(tiny: Callable[[str], Path]) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny("llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][299] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    engine = engine_of(folder, end_ids=(2, 299))
    prompts = ROWS.prompts(8)
    expected = alone(engine, prompts)
    prompts[3] = Prompt(3, (5, 299, 7), SamplingParams(8))
    prompts[6] = Prompt(6, (299,), SamplingParams(8, temperature=1.0, seed=1))
    results = run(engine, prompts, 8)
    assert codes(results) == dict.fromkeys(range(8), "") | {3: "engine_error", 6: "engine_error"}
    for index in (3, 6):
        failure = results.pop(index)
        assert isinstance(failure, Failure)
        assert "NaN" in failure.message
        expected.pop(index)
    assert tokens(results) == expected


def test_memory_that_runs_out_halves_the_batch(
    built: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(built["llama"])
    prompts = ROWS.prompts(12)
    longest = max(range(12), key=lambda index: len(prompts[index].token_ids))
    expected = alone(engine, prompts)
    prefill = PaddedBatch.prefill

    def small_memory(batch: PaddedBatch) -> torch.Tensor:
        rows, width = batch._token_ids.shape
        if rows > 3 or width == len(prompts[longest].token_ids):
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                "allocate memory: you tried to allocate 99 bytes.\nError code 12"
            )
        return prefill(batch)

    monkeypatch.setattr(PaddedBatch, "prefill", small_memory)
    results = run(engine, prompts, 12)
    failure = results.pop(longest)
    assert isinstance(failure, Failure)
    assert failure.code == "out_of_memory"
    del expected[longest]
    assert tokens(results) == expected


def test_torch_stays_as_it_was_between_rows(built: dict[str, Path]) -> None:
    results = engine_of(built["llama"]).run(in_batches(ROWS.prompts(6), 3))
    assert isinstance(next(results), EngineOutput)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
