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
from ctranslate2.converters import TransformersConverter

from packhorse.engines.ctranslate2.engine import CTranslate2Engine
from packhorse.errors import ModelError
from packhorse.models import ct2_spec, int8_preparation, prepare, reference_logits
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
GPT2: dict[str, Any] = {
    "vocab_size": 300, "n_embd": 48, "n_layer": 3, "n_head": 3, "n_positions": 128,
}  # fmt: skip
GEMMA4: dict[str, Any] = {
    **SIZES,
    "num_hidden_layers": 6,
    "head_dim": 32,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
}
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
    "gemma3, another scale": transformers.Gemma3TextConfig(**GEMMA, query_pre_attn_scalar=24),
    "gemma2, no cap of attention": transformers.Gemma2Config(
        **GEMMA, query_pre_attn_scalar=12, attn_logit_softcapping=None, final_logit_softcapping=5.0
    ),
    "gpt2": transformers.GPT2Config(**GPT2),
    "gpt2, scaled by layer": transformers.GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True),
    "gpt2, not scaled": transformers.GPT2Config(**GPT2, scale_attn_weights=False),
    "gpt2, another epsilon": transformers.GPT2Config(**GPT2, layer_norm_epsilon=0.5),
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
    "gemma4, experts": (
        transformers.Gemma4TextConfig(
            **GEMMA4,
            enable_moe_block=True,
            num_experts=4,
            top_k_experts=2,
            moe_intermediate_size=32,
        ),
        "leaves out .* of the .* weights",
    ),
    "gemma4, embeddings of each layer": (
        transformers.Gemma4TextConfig(
            **{**GEMMA4, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 300}
        ),
        "leaves out .* of the .* weights",
    ),
    "gpt_bigcode, keys of every head": (
        transformers.GPTBigCodeConfig(**GPT2, multi_query=False),
        "cannot run what its converter makes of this gpt_bigcode model",
    ),
    "phi3": (
        transformers.Phi3Config(**SIZES, pad_token_id=0, sliding_window=None),
        "the converter for phi3 models of CTranslate2 .* does not work .* in transformers",
    ),
    "gemma2": (
        transformers.Gemma2Config(**GEMMA, query_pre_attn_scalar=12),
        "the cap of its attention scores",
    ),
}
IDS = np.random.default_rng(0).integers(0, 300, 110).tolist()


def converted(folder: Path, quantization: str = "float32") -> Path:
    (folder / "converted").mkdir()
    convert_checkpoint(open_checkpoint(folder), quantization, folder / "converted")
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
    assert "--engine " in refused.value.hint
    assert "--engine ctranslate2" not in refused.value.hint


def test_weights_of_16_bits_are_converted_like_others(tmp_path: Path) -> None:
    saved(WHOLE["llama 3"], tmp_path).bfloat16().save_pretrained(tmp_path)
    loader: Any = transformers.AutoModelForCausalLM
    model = loader.from_pretrained(tmp_path, dtype="float32").requires_grad_(False)
    expected = model(torch.tensor([IDS])).logits[0].numpy()
    found = logits_of(converted(tmp_path))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("quantization", ["float32", "bfloat16", "int8", "int8_float32", "int16"])
@pytest.mark.parametrize(
    "changes",
    [{"layer_norm_epsilon": 0.01}, {"scale_attn_by_inverse_layer_idx": True}],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_a_converter_drops_shows_in_the_logits(
    changes: dict[str, Any], quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing that packhorse knows of and puts back, and less than rounding may come to."""
    saved(transformers.GPT2Config(**GPT2, **changes), tmp_path)
    monkeypatch.setattr(ct2_spec, "complete_spec", lambda spec, config: None)
    with pytest.raises(ModelError, match="computes other logits than transformers"):
        converted(tmp_path, quantization)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_a_dropped_query_scale_shows_in_the_logits(
    quantization: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transformers.Gemma3TextConfig(**GEMMA, query_pre_attn_scalar=24)
    saved(config, tmp_path).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    complete = ct2_spec.complete_spec

    def drop(spec: Any, config: Any) -> None:
        complete(spec, config)
        for layer in spec.decoder.layer:
            del vars(layer.self_attention)["queries_scale"]

    monkeypatch.setattr(ct2_spec, "complete_spec", drop)
    with pytest.raises(ModelError, match="computes other logits than transformers"):
        converted(tmp_path, quantization)


@pytest.mark.parametrize("is_dropped", [True, False])
def test_what_is_dropped_from_a_prepared_model_shows_before_it_is_rounded(
    is_dropped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared for int8: the weights that are converted are not those of the checkpoint."""
    saved(transformers.LlamaConfig(**SIZES, rms_norm_eps=0.01), tmp_path)
    (tmp_path / "converted").mkdir()

    def drop(spec: Any, config: Any) -> None:
        spec.config.layer_norm_epsilon = 1e-6

    if is_dropped:
        monkeypatch.setattr(ct2_spec, "complete_spec", drop)
    choice = int8_preparation.QuantizationMethodChoice("auto")
    arguments = (open_checkpoint(tmp_path), "int8", choice, tmp_path / "converted", "tiny", print)
    if not is_dropped:
        int8_preparation.convert_to_int8(*arguments)
        return
    with pytest.raises(ModelError, match="computes other logits than transformers"):
        int8_preparation.convert_to_int8(*arguments)


def test_a_small_difference_shows_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(transformers.GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True), tmp_path)
    monkeypatch.setattr(ct2_spec, "complete_spec", lambda spec, config: None)
    with pytest.raises(ModelError, match="computes other logits than transformers"):
        converted(tmp_path)


@pytest.mark.parametrize("quantization", ["int8", "float16", "bfloat16", "int16"])
@pytest.mark.parametrize("name", ["llama 3", "gemma3", "gpt2"])
def test_honest_rounding_is_not_refused(name: str, quantization: str, tmp_path: Path) -> None:
    saved(WHOLE[name], tmp_path)
    folder = converted(tmp_path, quantization)
    CTranslate2Engine(folder, end_ids=(), max_context=128, workers=1).close()


def test_logits_are_compared_when_a_folder_is_loaded(tmp_path: Path) -> None:
    """The file says which; one of other weights is refused, a damaged one too."""
    saved(WHOLE["llama"], tmp_path)
    folder = converted(tmp_path)
    (tmp_path / "other").mkdir()
    saved(transformers.LlamaConfig(**{**SIZES, "rms_norm_eps": 0.1}), tmp_path / "other")
    other = converted(tmp_path / "other") / reference_logits.FILE
    (folder / reference_logits.FILE).write_bytes(other.read_bytes())
    with pytest.raises(ModelError, match=r"other logits from .* than the model it was made from"):
        CTranslate2Engine(folder, end_ids=(), max_context=128, workers=1)
    (folder / reference_logits.FILE).write_bytes(other.read_bytes()[:-90])
    with pytest.raises(ModelError, match="is damaged"):
        CTranslate2Engine(folder, end_ids=(), max_context=128, workers=1)


def test_a_tokenizer_without_special_tokens_and_with_gaps(tmp_path: Path) -> None:
    """Ids without a token get a name, and no other id moves to their place."""
    saved(WHOLE["gpt2"], tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for name in ("bos_token", "unk_token", "pad_token", "eos_token"):
        settings.pop(name, None)
    path.write_text(json.dumps(settings))
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    names = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: place for token, place in names.items() if place < 250}
    merges = [[*merge.split(" ")] if isinstance(merge, str) else merge
              for merge in tokenizer["model"]["merges"]]  # fmt: skip
    known = tokenizer["model"]["vocab"]
    tokenizer["model"]["merges"] = [m for m in merges if {*m, "".join(m)} <= {*known}]
    tokenizer["added_tokens"] = [
        {**tokenizer["added_tokens"][0], "id": 280, "content": "<late>", "special": True}
    ]
    path.write_text(json.dumps(tokenizer))
    folder = converted(tmp_path)
    listed = json.loads((folder / "vocabulary.json").read_text())
    assert len(listed) == len(set(listed)) == 300
    found = transformers.AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    assert all(listed[place] == token for token, place in found.items())
    CTranslate2Engine(folder, end_ids=(), max_context=128, workers=1).close()


def test_a_ready_folder_of_the_usual_converter(tmp_path: Path) -> None:
    """It lacks the factors of Llama 3's rotations; with packhorse's own conversion it is fine."""
    saved(WHOLE["llama 3"], tmp_path)
    own = converted(tmp_path)
    prepare(str(own))
    ready = tmp_path / "ready"
    TransformersConverter(str(tmp_path)).convert(str(ready))
    for path in tmp_path.glob("*.json"):
        if path.name != "config.json":
            (ready / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="lost the factors of its rotations") as refused:
        prepare(str(ready))
    assert "Hugging Face folder" in refused.value.hint


def test_a_ready_folder_beside_its_config(tmp_path: Path) -> None:
    saved(LOST["qwen2, windows"][0], tmp_path)
    ready = tmp_path / "ready"
    TransformersConverter(str(tmp_path)).convert(str(ready))
    for path in tmp_path.glob("*.json"):
        if path.name != "config.json":
            (ready / path.name).write_bytes(path.read_bytes())
    (ready / "hf_config.json").write_bytes((tmp_path / "config.json").read_bytes())
    with pytest.raises(ModelError, match="lost the window of its attention"):
        prepare(str(ready))
