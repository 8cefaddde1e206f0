from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import tiny_models
from packhorse.errors import ModelError
from packhorse.models import cached_models, model_facts, prepare
from packhorse.models.gguf import GgufFacts, end_token_ids

Tiny = Callable[[str], Path]

FACTS = GgufFacts(
    architecture="llama",
    parameters=1,
    context_length=None,
    vocabulary_kind="gpt2",
    split_kind="default",
    tokens=["<|endoftext|>", "a", "<|im_end|>", "<|end|>", "<end_of_turn>"],
    end_ids=(0,),
    chat_template="",
)


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        ("", [0]),
        ("{{ message.content }}<|im_end|>", [0, 2]),
        ("<|end|>", [0, 3]),
        ("<|end|> <|return|>", [0]),
        ("<|im_end|><|endoftext|>", [0, 2]),
    ],
)
def test_a_template_tells_what_ends_a_turn(template: str, ends: list[int]) -> None:
    assert end_token_ids(replace(FACTS, chat_template=template)) == ends


def test_a_gguf_file_becomes_the_model_it_was_made_from(tiny: Tiny, home: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    folder = tiny("llama")
    prepared = prepare(str(tiny_models.tiny_gguf(folder)))
    assert (prepared.kind, prepared.quantization) == ("huggingface", "float32")
    weights = load_file(folder / "model.safetensors")
    unpacked = load_file(prepared.folder / "model.safetensors")
    assert weights.keys() == unpacked.keys()
    assert all(torch.equal(weights[name], unpacked[name]) for name in weights)
    original, tokenizer = (
        AutoTokenizer.from_pretrained(path) for path in (folder, prepared.tokenizer_folder)
    )
    text = "<|im_start|>user\nWhat is the capital of France?  It's 1998.<|im_end|>\n"
    assert tokenizer(text).input_ids == original(text).input_ids
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|endoftext|>")
    assert tokenizer.chat_template == tiny_models.CHAT_TEMPLATE
    assert tokenizer.model_max_length == tiny_models.MAX_CONTEXT
    facts = model_facts(prepared)
    assert facts.max_context == tiny_models.MAX_CONTEXT
    assert facts.eos_token_ids == (0, 2)  # the file names 0, the template ends turns with 2


def test_end_of_turn_metadata_arrives(tiny: Tiny, home: Path) -> None:
    file = tiny_models.tiny_gguf(tiny("llama"), eot_token_id=2, eom_token_id=1)
    facts = model_facts(prepare(str(file)))
    assert facts.eos_token_ids == (0, 2, 1)


def test_digits_are_split_where_the_vocabulary_was_made_so(
    tiny: Tiny, home: Path, messages: list[str]
) -> None:
    from transformers import AutoTokenizer

    folder = tiny("llama")
    plain = prepare(str(tiny_models.tiny_gguf(folder)), report=messages.append)
    digits = prepare(str(tiny_models.tiny_gguf(folder, pre="smollm")), report=messages.append)
    assert plain.folder != digits.folder
    split = [
        [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  19")]
        for tokenizer in (AutoTokenizer.from_pretrained(p.folder) for p in (plain, digits))
    ]
    assert split == [["a", "Ġ", "Ġ19"], ["a", "ĠĠ", "1", "9"]]
    assert not any("splitting" in message for message in messages)


def test_an_unknown_splitting_is_reported(tiny: Tiny, home: Path, messages: list[str]) -> None:
    file = tiny_models.tiny_gguf(tiny("llama"), pre="unheard-of")
    prepare(str(file), report=messages.append)
    assert any("'unheard-of'" in message for message in messages)


def test_a_gguf_file_runs_on_ctranslate2(tiny: Tiny, home: Path, messages: list[str]) -> None:
    folder = tiny("llama")
    file = tiny_models.tiny_gguf(folder)
    prepared = prepare(str(file), engine="ctranslate2", report=messages.append)
    assert [message.split()[0] for message in messages] == ["unpacking", "converting"]
    weights = (prepared.folder / "model.bin").read_bytes()
    straight = prepare(str(folder), engine="ctranslate2").folder
    assert weights == (straight / "model.bin").read_bytes()
    for model in cached_models():
        if model.kind == "huggingface":
            (model.folder / "model.safetensors").unlink()
    assert prepare(str(file), engine="ctranslate2") == prepared


@pytest.mark.parametrize("kept", [4, 20, 1000, 7000, 200_000, -1])
def test_a_truncated_file(tiny: Tiny, home: Path, kept: int) -> None:
    file = tiny_models.tiny_gguf(tiny("llama"))
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match="is truncated or damaged"):
        prepare(str(file))
    assert cached_models() == []


def test_an_architecture_transformers_cannot_read(tiny: Tiny, home: Path) -> None:
    file = tiny_models.tiny_gguf(tiny("llama"))
    content = file.read_bytes()
    file.write_bytes(content.replace(b"llama", b"lxama"))
    with pytest.raises(ModelError, match=r"cannot use model.gguf \(lxama\)") as caught:
        prepare(str(file))
    assert "Hugging Face folder" in caught.value.hint


def test_what_transformers_writes_is_all_there(tiny: Tiny, home: Path) -> None:
    folder = prepare(str(tiny_models.tiny_gguf(tiny("llama")))).folder
    assert {path.name for path in folder.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "packhorse-manifest.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
