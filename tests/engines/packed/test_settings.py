"""Options of configs and files are honoured as by transformers or rejected; checks at load time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from packhorse.engines.packed import PackedEngine
from packhorse.engines.packed.engine import LONGEST_ROW
from packhorse.errors import EngineError, ModelError
from packhorse.models.reference_logits import FILE, reference_logits
from random_models import FAMILIES, SIZES, saved

IDS = tuple(np.random.default_rng(0).integers(0, 200, 60).tolist())


def engine_of(folder: Path, **options: Any) -> PackedEngine:
    defaults = {
        "end_ids": (),
        "max_context": 128,
        "threads": 1,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
    }
    return PackedEngine(folder, **{**defaults, **options})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, added: dict[str, int], without: str = "-") -> None:
    """Add vectors of ones, by name and length, and drop names that contain `without`."""
    path = folder / "model.safetensors"
    kept = {name: each for name, each in load_file(path).items() if without not in name}
    save_file(
        {**kept, **{name: torch.ones(n) for name, n in added.items()}}, path, {"format": "pt"}
    )


def require_as_transformers(folder: Path) -> None:
    loader: Any = transformers.AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype="float32").requires_grad_(False)
    expected = model(torch.tensor([IDS])).logits[0, -40:].numpy()
    found = engine_of(folder).logits_after(IDS, 40)
    assert found == pytest.approx(expected, abs=2e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"sliding_window": 7}),
        ("llama", {"sliding_window": 7, "layer_types": ["sliding_attention"] * 2}),
        ("qwen2", {"sliding_window": 7, "use_sliding_window": False}),
        ("llama", {"rms_norm_eps": 0.3}),
        ("gpt2", {"layer_norm_epsilon": 0.3}),
    ],
    ids=str,
)
def test_settings(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    saved(FAMILIES[family], tmp_path)
    edit_config(tmp_path, **changes)
    require_as_transformers(tmp_path)


@pytest.mark.parametrize(
    ("family", "name", "length"),
    [
        ("llama", "model.layers.0.self_attn.q_proj.bias", 48),
        ("mistral", "model.layers.1.mlp.down_proj.bias", 48),
        ("qwen2", "model.layers.0.self_attn.o_proj.bias", 48),
        ("qwen3", "model.layers.0.input_layernorm.bias", 48),
    ],
)
def test_biases_that_the_model_lacks_are_ignored(
    family: str, name: str, length: int, tmp_path: Path
) -> None:
    saved(FAMILIES[family], tmp_path)
    edit_weights(tmp_path, {name: length})
    require_as_transformers(tmp_path)


def test_missing_biases_are_reported(tmp_path: Path) -> None:
    saved(FAMILIES["qwen2"], tmp_path)
    edit_weights(tmp_path, {}, without="k_proj.bias")
    with pytest.raises(ModelError, match=r"lacks the weights layers\.0\.self_attn\.k_proj\.bias"):
        engine_of(tmp_path)


def test_unknown_layer_types(tmp_path: Path) -> None:
    saved(FAMILIES["qwen3"], tmp_path)
    edit_config(tmp_path, layer_types=["full_attention", "chunked_attention"])
    with pytest.raises(EngineError, match="layers of type 'chunked_attention'"):
        engine_of(tmp_path)


def test_a_cache_that_cannot_be_allocated(tmp_path: Path) -> None:
    saved(FAMILIES["llama"], tmp_path)
    with pytest.raises(EngineError, match=r"cannot allocate a key/value cache of .* GB") as refused:
        engine_of(tmp_path, cache_bytes=1 << 50)
    assert "--cache-gb" in refused.value.hint


@pytest.mark.slow
def test_a_context_larger_than_memory(tmp_path: Path) -> None:
    saved(transformers.LlamaConfig(**{**SIZES, "max_position_embeddings": 1 << 26}), tmp_path)
    engine = engine_of(tmp_path, max_context=1 << 26)
    assert 1 << 16 <= engine.capabilities.max_context <= LONGEST_ROW


def test_truncated_weights(tmp_path: Path) -> None:
    saved(FAMILIES["llama"], tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        engine_of(tmp_path)


def test_logits_at_once_and_token_by_token_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(FAMILIES["mistral"], tmp_path)
    stepped = PackedEngine._compute_logits_token_by_token
    monkeypatch.setattr(
        PackedEngine,
        "_compute_logits_token_by_token",
        lambda *asked, is_long: stepped(*asked, is_long=is_long) + 0.1,
    )
    with pytest.raises(ModelError, match="other logits for a prompt"):
        engine_of(tmp_path)


def test_reference_logits_beside_the_weights_are_compared(tmp_path: Path) -> None:
    kept = reference_logits(saved(FAMILIES["llama"], tmp_path))
    assert kept is not None
    kept.save(tmp_path)
    for quantization in ("float32", "int8"):
        engine_of(tmp_path, quantization=quantization).close()
    edit_config(tmp_path, rms_norm_eps=0.3)
    with pytest.raises(ModelError, match="than its source model"):
        engine_of(tmp_path)
    (tmp_path / FILE).unlink()
    engine_of(tmp_path).close()
