from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packhorse.errors import ModelError
from packhorse.models import ModelFacts, PreparedModel, model_facts, prepare

Tiny = Callable[[str], Path]

LLAMA = {
    "model_type": "llama", "max_position_embeddings": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_size": 4096, "vocab_size": 32000, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_positions": 1024, "n_ctx": 1024, "n_layer": 12, "n_head": 12,
    "n_embd": 768, "vocab_size": 50257, "eos_token_id": 50256,
}  # fmt: skip
QWEN3 = {
    "model_type": "qwen3", "max_position_embeddings": 40960, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "hidden_size": 1024,
    "vocab_size": 151936, "eos_token_id": 151645,
}  # fmt: skip
FALCON = {
    "model_type": "falcon", "num_hidden_layers": 32, "num_attention_heads": 71,
    "multi_query": True, "hidden_size": 4544, "vocab_size": 65024, "eos_token_id": 11,
}  # fmt: skip
MPT = {
    "model_type": "mpt", "max_seq_len": 2048, "n_layers": 32, "n_heads": 32, "d_model": 4096,
    "vocab_size": 50432,
}  # fmt: skip
GEMMA3 = {
    "model_type": "gemma3", "eos_token_id": [1, 106],
    "text_config": {
        "model_type": "gemma3_text", "max_position_embeddings": 131072, "num_hidden_layers": 34,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_size": 2560,
        "vocab_size": 262208,
    },
}  # fmt: skip


def described(folder: Path, **documents: dict[str, Any]) -> PreparedModel:
    """A prepared model of nothing but JSON files: config={...} is config.json."""
    folder.mkdir(exist_ok=True)
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return PreparedModel("m", "huggingface", folder, folder, "float32", "", 0)


@pytest.mark.parametrize(
    ("config", "sizes", "ends"),
    [  # context, vocabulary
        (LLAMA, (4096, 32000), (2,)),
        (GPT2, (1024, 50257), (50256,)),
        (QWEN3, (40960, 151936), (151645,)),
        (FALCON, (2048, 65024), (11,)),
        (MPT, (2048, 50432), ()),
        (GEMMA3, (131072, 262208), (1, 106)),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else None,
)
def test_families_name_their_sizes_differently(
    tmp_path: Path, config: dict[str, Any], sizes: tuple[int, ...], ends: tuple[int, ...]
) -> None:
    facts = model_facts(described(tmp_path, config=config))
    assert (facts.max_context, facts.vocab_size) == sizes
    assert facts.eos_token_ids == ends


@pytest.mark.parametrize(
    ("generation", "ends"),
    [
        ({}, (2,)),
        ({"eos_token_id": 7}, (7, 2)),
        ({"eos_token_id": [7, 8], "pad_token_id": 0}, (7, 8, 2)),
        ({"eos_token_id": [2, 7]}, (2, 7)),
        ({"eos_token_id": None, "pad_token_id": -1}, (2,)),
        ({"eos_token_id": []}, (2,)),
        ({"eos_token_id": [True, -1, 32000, "2", None, 31999]}, (31999, 2)),
    ],
)
def test_ends_are_those_of_the_generation_config_and_the_config(
    tmp_path: Path, generation: dict[str, Any], ends: tuple[int, ...]
) -> None:
    facts = model_facts(described(tmp_path, config=LLAMA, generation_config=generation))
    assert facts.eos_token_ids == ends


@pytest.mark.parametrize(
    ("length", "context"), [(512, 512), (1e30, 2048), (None, 2048), (0, 2048), (4096.0, 4096)]
)
def test_a_context_only_the_tokenizer_tells(tmp_path: Path, length: object, context: int) -> None:
    model = described(tmp_path, config=FALCON, tokenizer_config={"model_max_length": length})
    assert model_facts(model).max_context == context


@pytest.mark.parametrize(
    ("eos_token", "stated", "ends"),
    [  # the tiny tokenizer: ids 0, 1, 2 are special, 263 is " the"
        ("<|im_end|>", None, (2,)),
        ("<|im_end|>", 1, (1, 2)),
        ({"__type": "AddedToken", "content": "<|im_end|>"}, [1, 0], (1, 0, 2)),
        ("<|endoftext|>", 0, (0,)),
        (None, 1, (1,)),
        ("\u0120the", 1, (1,)),
        ("\u0120the", None, (263,)),
        ("<|no such token|>", 1, (1,)),
    ],
    ids=str,
)
@pytest.mark.parametrize("engine", ["transformers", "ctranslate2"])
def test_the_tokenizers_end_token_ends_a_text_too(
    tiny: Tiny, home: Path, eos_token: object, stated: object, ends: tuple[int, ...], engine: str
) -> None:
    folder = tiny("llama")
    for name, field, value in (
        ("config", "eos_token_id", stated),
        ("generation_config", "eos_token_id", None),
        ("tokenizer_config", "eos_token", eos_token),
    ):
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    assert model_facts(prepare(str(folder), engine=engine)).eos_token_ids == ends


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("rotation", "context"),
    [
        ({"rope_parameters": {**YARN, "original_max_position_embeddings": 4096}}, 16384),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 2048}}, 8192),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, 16384),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 8192),
        ({"rope_parameters": {"full_attention": YARN, "sliding_attention": None}}, 16384),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, 4096),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 4096),
        ({"rope_parameters": {**YARN, "factor": None}}, 4096),
        ({"rope_parameters": {**YARN, "factor": 1e12}}, 4096),
        ({"rope_parameters": {**YARN, "factor": float("nan")}}, 4096),
        ({"rope_parameters": {**YARN, "factor": 0.5}}, 4096),
        ({"rope_scaling": None}, 4096),
        ({"rope_scaling": "yarn"}, 4096),
    ],
    ids=str,
)
def test_scaled_rotary_positions_lengthen_the_context(
    tmp_path: Path, rotation: dict[str, Any], context: int
) -> None:
    assert model_facts(described(tmp_path, config={**LLAMA, **rotation})).max_context == context


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_conversion_keeps_all_facts(tiny: Tiny, home: Path, name: str) -> None:
    folder = str(tiny(name))
    facts = model_facts(prepare(folder))
    assert model_facts(prepare(folder, engine="ctranslate2", quantization="int8")) == facts
    assert facts == ModelFacts(
        max_context=256,
        eos_token_ids=(2,) if name == "llama" else (0,),
        vocab_size=300,
    )


@pytest.mark.parametrize(
    ("name", "copied", "context", "ends"),
    [
        ("llama", ["tokenizer.json"], 2048, (2,)),
        ("llama", ["tokenizer.json", "tokenizer_config.json"], 256, (2,)),
        ("llama", ["tokenizer.json", "generation_config.json"], 2048, (2,)),
        ("gpt2", ["tokenizer.json"], 256, (0,)),
    ],
)
def test_a_converted_folder_without_config_is_read_itself(
    tiny: Tiny,
    tmp_path: Path,
    messages: list[str],
    name: str,
    copied: list[str],
    context: int,
    ends: tuple[int, ...],
) -> None:
    from ctranslate2.converters import TransformersConverter

    folder = tiny(name)
    TransformersConverter(str(folder), copy_files=copied).convert(str(tmp_path / "ready"))
    prepared = prepare(str(tmp_path / "ready"))
    found = model_facts(prepared, messages.append)
    told = model_facts(prepare(str(folder)))
    assert (found.max_context, found.eos_token_ids) == (context, ends)
    assert found.vocab_size == told.vocab_size
    assert bool(messages) == (context == 2048)
    (tmp_path / "ready" / "hf_config.json").write_bytes((folder / "config.json").read_bytes())
    assert model_facts(prepare(str(tmp_path / "ready"))).max_context == 256


def test_a_converted_folder_that_names_no_end_token(tiny: Tiny, tmp_path: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    ready = tmp_path / "ready"
    converter = TransformersConverter(str(tiny("llama")), copy_files=["tokenizer.json"])
    converter.convert(str(ready))
    (ready / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not tell which token ends a text"):
        model_facts(prepare(str(ready)))


def test_the_fake_model() -> None:
    assert model_facts(prepare("x", engine="fake")).vocab_size == 256
