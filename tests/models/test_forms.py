"""The forms that one model comes in: every engine gives the answers of `generate` for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import packhorse
from packhorse.config import BatchingConfig, EngineConfig
from packhorse.data import Completion
from packhorse.errors import PackhorseError

Tiny = Callable[[str], Path]
PROMPTS = ("Who wrote this?", "The packhorse carries many small loads over the hills", "Translate")
NEW_TOKENS = 12
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def answers(folder: Path, engine: str, **options: Any) -> list[tuple[int, ...]]:
    """Token ids of each prompt's answer."""
    chosen = EngineConfig(engine, quantization="float32", threads=1)
    batching = BatchingConfig("single" if engine == "ctranslate2" else "auto")
    with packhorse.load(str(folder), engine=chosen, batching=batching, **options) as model:
        made = list(model.generate(PROMPTS, max_new_tokens=NEW_TOKENS))
    assert all(isinstance(answer, Completion) for answer in made), made
    found = [answer for answer in made if isinstance(answer, Completion)]
    return [answer.token_ids for answer in sorted(found, key=lambda answer: answer.index)]


def expected(folder: Path, ends: tuple[int, ...] = (2,)) -> list[tuple[int, ...]]:
    """What `generate` makes of the prompts in float32, a row at a time, without the end token."""
    import torch
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    builder: Any = transformers.AutoModelForCausalLM
    model = builder.from_pretrained(folder, dtype=torch.float32)
    found = []
    for prompt in PROMPTS:
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
        else:
            ids = torch.tensor([tokenizer(prompt).input_ids])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=list(ends),
            pad_token_id=0,
        )
        tokens = made[0, ids.shape[1] :].tolist()
        found.append(tuple(tokens[:-1] if tokens[-1] in ends else tokens))
    return found


def edit(path: Path, *dropped: str, **changes: Any) -> None:
    document = json.loads(path.read_text())
    kept = {name: value for name, value in document.items() if name not in dropped}
    path.write_text(json.dumps({**kept, **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def in_shards(folder: Path, dtype: str) -> None:
    import torch
    import transformers

    builder: Any = transformers.AutoModelForCausalLM
    model = builder.from_pretrained(folder, dtype=getattr(torch, dtype))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert (folder / "model.safetensors.index.json").is_file()


def extended(folder: Path) -> None:
    """Positions of the type llama3, as transformers 5 writes them."""
    rotation = {"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA3}
    edit(folder / "config.json", rope_parameters=rotation)


def extended_as_before(folder: Path) -> None:
    """The same as transformers 4 wrote it."""
    edit(
        folder / "config.json",
        "rope_parameters",
        "dtype",
        rope_scaling={"rope_type": "llama3", **LLAMA3},
        rope_theta=10000.0,
        torch_dtype="float32",
    )


def linear(folder: Path) -> None:
    rotation = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    edit(folder / "config.json", rope_parameters=rotation)


def linear_as_at_first(folder: Path) -> None:
    """The oldest spelling."""
    scaling = {"type": "linear", "factor": 4.0}
    edit(folder / "config.json", "rope_parameters", rope_scaling=scaling, rope_theta=10000.0)


def with_head(folder: Path, *, equal: bool) -> None:
    """A head beside embeddings that are said to be tied: used if it is another."""

    def change(weights: dict[str, Any]) -> dict[str, Any]:
        head = weights["model.embed_tokens.weight"]
        return {**weights, "lm_head.weight": (head if equal else head.flip(0)).clone()}

    edit_weights(folder, change)


def as_on_the_hub(folder: Path) -> None:
    """GPT-2's first names: no prefix, and masks among the weights."""
    import torch

    def change(weights: dict[str, Any]) -> dict[str, Any]:
        renamed = {name.removeprefix("transformer."): value for name, value in weights.items()}
        masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 256, 256).tril() for layer in range(2)}
        return {**renamed, **masks}

    edit_weights(folder, change)


def with_tensors_nobody_reads(folder: Path) -> None:
    """Frequencies of old checkpoints."""
    import torch

    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda weights: {**weights, name: torch.ones(8)})


def without_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()


def without_architectures(folder: Path) -> None:
    edit(folder / "config.json", "architectures")


def tokenizer_of_two_files(folder: Path) -> None:
    """vocab.json and merges.txt, without tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    edit(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")


def in_tokenizer_config(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=template)


def named_in_tokenizer_config(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    named = [
        {"name": "tool_use", "template": "unused"},
        {"name": "default", "template": template},
    ]
    edit(folder / "tokenizer_config.json", chat_template=named)


def with_additional_templates(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("unused")


def unchanged(folder: Path) -> None:
    """As `save_pretrained` writes it."""


Form = Callable[[Path], None]
FORMS: dict[str, tuple[str, Form, Form]] = {
    "bfloat16 in shards": ("llama", partial(in_shards, dtype="bfloat16"), unchanged),
    "float16 in shards": ("llama", partial(in_shards, dtype="float16"), unchanged),
    "config of transformers 4": ("llama", extended, extended_as_before),
    "first spelling of rope_scaling": ("llama", linear, linear_as_at_first),
    "equal head stored": ("tied", unchanged, partial(with_head, equal=True)),
    "another head stored": ("tied", partial(with_head, equal=False), unchanged),
    "names of the hub": ("gpt2", unchanged, as_on_the_hub),
    "tensors nobody reads": ("llama", unchanged, with_tensors_nobody_reads),
    "no generation_config": ("llama", unchanged, without_generation_config),
    "no architectures": ("llama", unchanged, without_architectures),
    "vocab.json and merges.txt": ("gpt2", unchanged, tokenizer_of_two_files),
    "template in tokenizer_config": ("llama", unchanged, in_tokenizer_config),
    "named templates": ("llama", unchanged, named_in_tokenizer_config),
    "additional templates": ("llama", unchanged, with_additional_templates),
}
"""A small model, what is done to it before `generate` is asked, and what is done after that."""


@pytest.mark.parametrize("engine", ["transformers", "ctranslate2", "packed"])
@pytest.mark.parametrize("name", FORMS)
def test_a_form_changes_no_answer(tiny: Tiny, home: Path, name: str, engine: str) -> None:
    model, before, after = FORMS[name]
    folder = tiny(model)
    before(folder)
    wanted = expected(folder, ends=(0,) if model == "gpt2" else (2,))
    after(folder)
    assert answers(folder, engine) == wanted


@pytest.mark.parametrize("engine", ["transformers", "ctranslate2", "packed"])
def test_any_of_several_end_tokens_ends_an_answer(tiny: Tiny, home: Path, engine: str) -> None:
    folder = tiny("llama")
    first, second, _ = expected(folder)
    ends = (2, first[3], second[5])
    edit(folder / "generation_config.json", eos_token_id=list(ends))
    assert answers(folder, engine) == expected(folder, ends)


@pytest.mark.parametrize("engine", ["transformers", "ctranslate2", "packed"])
def test_an_absent_tensor_is_named(tiny: Tiny, home: Path, engine: str) -> None:
    folder, name = tiny("llama"), "model.layers.1.mlp.up_proj.weight"
    edit_weights(folder, lambda weights: {k: v for k, v in weights.items() if k != name})
    with pytest.raises(PackhorseError, match="up_proj"):
        answers(folder, engine)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_gguf_types(tiny: Tiny, home: Path, kind: str) -> None:
    import gguf
    import torch

    from tiny_models import tiny_gguf

    folder = tiny("llama")
    stored = gguf.GGMLQuantizationType[kind]
    file = tiny_gguf(folder, weights_as=kind, eot_token_id=2)

    def rounded(weights: dict[str, Any]) -> dict[str, Any]:
        return {
            name: torch.from_numpy(
                gguf.quants.dequantize(gguf.quants.quantize(value.numpy(), stored), stored)
            )
            if value.dim() == 2
            else value
            for name, value in weights.items()
        }

    edit_weights(folder, rounded)
    wanted = expected(folder, ends=(0, 2))
    assert answers(file, "transformers") == wanted
    if kind == "Q8_0":
        assert answers(file, "packed") == wanted
        assert answers(file, "ctranslate2") == wanted
