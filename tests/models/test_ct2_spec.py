"""A converted model is the model, or it is not converted: against transformers, in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch
import transformers

from packhorse.errors import ModelError
from packhorse.models.checkpoint import open_checkpoint
from packhorse.models.convert import convert_checkpoint
from random_models import LLAMA3, YARN, saved
from random_models import SIZES as SMALL

SIZES: dict[str, Any] = {**SMALL, "vocab_size": 300}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "long_factor": [2.0] * 6,
    "short_factor": [1.5] * 6,
    "original_max_position_embeddings": 64,
}
GEMMA: dict[str, Any] = {**SIZES, "head_dim": 12}
WHOLE: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**SIZES),
    "llama 3": transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama 3, own head size": transformers.LlamaConfig(
        **SIZES, rope_parameters=LLAMA3, head_dim=20, attention_bias=True
    ),
    "llama 3, other factors": transformers.LlamaConfig(
        **SIZES, rope_parameters={**LLAMA3, "low_freq_factor": 2.0, "high_freq_factor": 9.0}
    ),
    "llama, linear": transformers.LlamaConfig(**SIZES, rope_parameters=LINEAR),
    "mistral, rotations of llama 3": transformers.MistralConfig(
        **SIZES, rope_parameters=LLAMA3, sliding_window=None
    ),
    "qwen2, own head size": transformers.Qwen2Config(**{**SIZES, "head_dim": 20}),
    "qwen3, rotations of llama 3": transformers.Qwen3Config(
        **SIZES, head_dim=32, rope_parameters=LLAMA3
    ),
    "gemma": transformers.GemmaConfig(**GEMMA),
    "gemma3": transformers.Gemma3TextConfig(**GEMMA, query_pre_attn_scalar=12),
}
LOST: dict[str, tuple[Any, str]] = {
    "llama, yarn": (transformers.LlamaConfig(**SIZES, rope_parameters=YARN), "yarn positions"),
    "llama, longrope": (
        transformers.LlamaConfig(**SIZES, rope_parameters=LONGROPE),
        "loses how its positions rotate",
    ),
    "gemma, another base": (
        transformers.GemmaConfig(**{**GEMMA, "rope_theta": 1e6}),
        "loses how its positions rotate",
    ),
    "qwen2, windows": (
        transformers.Qwen2Config(
            **SIZES, use_sliding_window=True, sliding_window=9, max_window_layers=1
        ),
        "loses the window of its attention",
    ),
    "llama, gelu": (transformers.LlamaConfig(**SIZES, hidden_act="gelu"), "activation 'gelu'"),
    "gemma2": (
        transformers.Gemma2Config(**GEMMA, query_pre_attn_scalar=12),
        "the cap of its attention scores",
    ),
}
IDS = np.random.default_rng(0).integers(0, 300, 110).tolist()


def converted(folder: Path) -> Path:
    (folder / "converted").mkdir()
    convert_checkpoint(open_checkpoint(folder), "float32", folder / "converted")
    return folder / "converted"


def logits_of(folder: Path) -> np.ndarray[Any, Any]:
    generator = ctranslate2.Generator(str(folder), compute_type="float32")
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    found = generator.forward_batch([[vocabulary[token] for token in IDS]])
    logits: np.ndarray[Any, Any] = np.array(found)[0]
    return logits


@pytest.mark.parametrize("name", WHOLE)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """At positions past the 64 that models with rotations of llama 3 began with, too."""
    model = saved(WHOLE[name], tmp_path)
    expected = model(torch.tensor([IDS])).logits[0].numpy()
    found = logits_of(converted(tmp_path))
    assert found == pytest.approx(expected, abs=2e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize("name", LOST)
def test_what_a_conversion_would_lose_is_refused(name: str, tmp_path: Path) -> None:
    config, lost = LOST[name]
    saved(config, tmp_path)
    with pytest.raises(ModelError, match=lost) as refused:
        converted(tmp_path)
    assert "--engine transformers" in refused.value.hint


def test_weights_of_16_bits_are_converted_like_others(tmp_path: Path) -> None:
    saved(WHOLE["llama 3"], tmp_path).bfloat16().save_pretrained(tmp_path)
    loader: Any = transformers.AutoModelForCausalLM
    model = loader.from_pretrained(tmp_path, dtype="float32").requires_grad_(False)
    expected = model(torch.tensor([IDS])).logits[0].numpy()
    found = logits_of(converted(tmp_path))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
