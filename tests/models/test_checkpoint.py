from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packhorse.errors import ModelError
from packhorse.models import prepare
from packhorse.models.checkpoint import open_checkpoint
from random_models import SIZES, saved

Tiny = Callable[[str], Path]


def configure(folder: Path, **changes: Any) -> None:
    """Change config.json; None removes a field."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    kept = {name: value for name, value in config.items() if value is not None}
    path.write_text(json.dumps(kept))


def save_as(folder: Path, dtype: str = "float32", **options: Any) -> None:
    """Save the model of `folder` again."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, **options)


def pickle_weights(folder: Path) -> None:
    """Replace the safetensors file by a PyTorch .bin file."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_a_whole_checkpoint(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("llama"))
    assert checkpoint.weights == ("model.safetensors",)
    assert checkpoint.quantization == "float32"
    assert not checkpoint.pickled
    assert checkpoint.files == (
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    )


def test_the_number_format_is_that_of_the_weights(tiny: Tiny) -> None:
    folder = tiny("llama")
    save_as(folder, "bfloat16")
    assert prepare(str(folder)).quantization == "bfloat16"


def test_shards(tiny: Tiny) -> None:
    folder = tiny("llama")
    save_as(folder, max_shard_size="200KB")
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.weights) > 1
    assert "model.safetensors.index.json" in checkpoint.files
    (folder / checkpoint.weights[-1]).unlink()
    with pytest.raises(ModelError, match=f"lacks 1 of .* {checkpoint.weights[-1]}"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertModel"], "model_type": "bert"}, "is a BertModel, not a language"),
        ({"architectures": None, "model_type": "bert"}, "is a bert, not a language"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is a LlamaForSequenceClass"),
        ({"architectures": ["LlamaModel"]}, "is a LlamaModel"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "is an encoder-decoder model"),
        ({"model_type": None}, "names no model_type"),
    ],
)
def test_the_wrong_kind(tiny: Tiny, changes: dict[str, Any], message: str) -> None:
    folder = tiny("llama")
    configure(folder, **changes)
    with pytest.raises(ModelError, match=message):
        prepare(str(folder))


@pytest.mark.parametrize("engine", ["transformers", "ctranslate2"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "homemade", "auto_map": {"AutoConfig": "x.Y"}}, "runs no code that comes"),
        ({"model_type": "homemade"}, "does not know models of type 'homemade'"),
    ],
)
def test_code_that_comes_with_a_model_is_not_run(
    tiny: Tiny, home: Path, engine: str, changes: dict[str, Any], message: str
) -> None:
    folder = tiny("llama")
    configure(folder, **changes)
    with pytest.raises(ModelError, match=message):
        prepare(str(folder), engine=engine)


def test_a_class_of_transformers_own_is_used_in_spite_of_auto_map(tiny: Tiny) -> None:
    folder = tiny("llama")
    configure(folder, auto_map={"AutoConfig": "modeling.Config"})
    assert prepare(str(folder)).kind == "huggingface"


@pytest.mark.parametrize("kept", [0, 5, 100, 5000, -1])
def test_truncated_weights(tiny: Tiny, kept: int) -> None:
    folder = tiny("llama")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ModelError, match="truncated"):
        prepare(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"\x10\0\0\0\0\0\0\0not json at all.....", "is no safetensors file"),
        (b"\x02\0\0\0\0\0\0\0[]", "is no safetensors file"),
        (b"\x02\0\0\0\0\0\0\0{}", "holds no weights"),
    ],
)
def test_files_that_are_no_weights(tiny: Tiny, content: bytes, message: str) -> None:
    folder = tiny("llama")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        prepare(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "is not JSON"),
        ("config.json", b"[1]", "must hold a JSON object, not a list"),
        ("config.json", b"\xff\xfe\x00", "is not UTF-8"),
        ("model.safetensors", None, "has no weights"),
        ("tokenizer.json", None, "has no tokenizer"),
    ],
)
def test_damaged_folders(tiny: Tiny, name: str, content: bytes | None, message: str) -> None:
    folder = tiny("llama")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        prepare(str(folder))


def test_pickles_only_if_they_are_allowed(tiny: Tiny, home: Path) -> None:
    folder = tiny("llama")
    safe = prepare(str(folder), engine="ctranslate2")
    pickle_weights(folder)
    with pytest.raises(ModelError, match="only PyTorch pickles") as caught:
        prepare(str(folder))
    assert "--allow-pickle" in caught.value.hint
    assert prepare(str(folder), allow_pickle=True).quantization == "float32"
    converted = prepare(str(folder), engine="ctranslate2", allow_pickle=True)
    assert converted.fingerprint == safe.fingerprint


def test_a_pickle_that_runs_code_is_refused_even_if_pickles_are_allowed(
    tiny: Tiny, home: Path, tmp_path: Path
) -> None:
    import torch

    folder, trace = tiny("llama"), tmp_path / "trace"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trace,)

    pickle_weights(folder)
    torch.save({"lm_head.weight": Attack()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="the pickle holds objects that are no tensors"):
        prepare(str(folder), engine="ctranslate2", allow_pickle=True)
    assert not trace.exists()


@pytest.mark.parametrize("named", ["Homemade", "PreTrainedTokenizerFast", None])
def test_code_that_comes_with_a_tokenizer_is_not_run(
    tiny: Tiny, home: Path, tmp_path: Path, named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, trace = tiny("llama"), tmp_path / "trace"
    (folder / "homemade.py").write_text(f"open({str(trace)!r}, 'w')\nclass Homemade: pass\n")
    path = folder / "tokenizer_config.json"
    config = {
        **json.loads(path.read_text()),
        "auto_map": {"AutoTokenizer": [None, "homemade.Homemade"]},
    }
    config["tokenizer_class"] = named
    path.write_text(json.dumps({name: value for name, value in config.items() if value}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with contextlib.suppress(ModelError):
        prepare(str(folder), engine="ctranslate2")
    assert not trace.exists()


def test_safetensors_come_before_pickles(tiny: Tiny) -> None:
    folder = tiny("llama")
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    assert open_checkpoint(folder, allow_pickle=True).weights == ("model.safetensors",)


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "tokenizer.json"])
def test_the_fingerprint_changes_with_every_file_that_decides(tiny: Tiny, name: str) -> None:
    folder = tiny("llama")
    before = prepare(str(folder)).fingerprint
    (folder / "README.md").write_text("no part of the model")
    assert prepare(str(folder)).fingerprint == before
    path = folder / name
    path.write_bytes(path.read_bytes() + b"\n")
    assert prepare(str(folder)).fingerprint != before


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "someone/kernel:main"},
        {"_attn_implementation_internal": "someone/kernel"},
        {"experts_implementation": "paged|someone/kernel"},
        {"text_config": {"attn_implementation": "someone/kernel"}},
        {"attn_implementation": {"text_config": "someone/kernel"}},
        {"parts": [{"_attn_implementation": "someone/kernel"}]},
    ],
    ids=str,
)
def test_a_config_that_asks_for_code_is_refused(tiny: Tiny, settings: dict[str, Any]) -> None:
    from packhorse.models.resolved_config import load_config

    folder = tiny("llama")
    configure(folder, **settings)
    for load in (open_checkpoint, load_config):
        with pytest.raises(ModelError, match=r"asks for the kernel .*someone/kernel") as error:
            load(folder)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["flash_attention_2", "eager", "no such thing"])
def test_a_config_does_not_choose_how_attention_runs(tiny: Tiny, name: str, value: str) -> None:
    from packhorse.models.loading import load_float32

    folder = tiny("llama")
    configure(folder, **{name: value})
    assert load_float32(open_checkpoint(folder)).config._attn_implementation == "sdpa"


def test_experts_that_are_stored_one_by_one_bound_nothing(tmp_path: Path) -> None:
    """The router has an output per expert, so it is as wide as there are experts."""
    import transformers
    from safetensors import safe_open

    experts: dict[str, Any] = {"num_experts": 256, "num_experts_per_tok": 2, "head_dim": 16}
    sizes: dict[str, Any] = {**SIZES, "moe_intermediate_size": 8, "num_hidden_layers": 1}
    saved(transformers.Qwen3MoeConfig(**sizes, **experts), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert sum(".experts." in name for name in file.keys()) >= 3 * 256  # noqa: SIM118
    open_checkpoint(tmp_path)
    configure(tmp_path, num_experts=257)
    with pytest.raises(ModelError, match="num_experts must be a whole number from 0 to 256"):
        open_checkpoint(tmp_path)
