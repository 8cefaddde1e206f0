"""Configs and tokenizers that are kept in the cache say the same as transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from packhorse.errors import ModelError
from packhorse.models.resolved_config import ResolvedConfig, load_config, read_config
from packhorse.storage.cache_folder import derived_folder, fill_derived, is_complete
from packhorse.tokenization import HuggingFaceCodec
from packhorse.tokenization import loading as tokenizer_loading

Tiny = Callable[[str], Path]
TEXTS = [
    "It's 3 p.m.",
    "  spaces\n\n",
    "caf\u00e9 \u4f60\u597d \U0001f600",
    "<|im_end|></s>[INST]",
    "",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PACKHORSE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_config(folder: Path, **values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    "kind",
    ["llama", "gpt2", "gemma2", "gemma3", "qwen3", "phi3", "mistral", "mixtral", "gpt_oss",
     "qwen3_5", "falcon", "bloom", "smollm3", "granite", "olmo3", "mamba"],
)  # fmt: skip
def test_a_kept_config_has_the_values_of_transformers(kind: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", model_type=kind)
    own = load_config(folder)
    read_config(folder)
    kept = read_config(folder)
    assert type(kept) is ResolvedConfig
    compare(kept, own)
    if (text := own.get_text_config()) is not own:
        compare(kept.get_text_config(), text)


def compare(kept: Any, own: Any) -> None:
    checked = 0
    for name, value in own.to_dict().items():
        if name in ("id2label", "dtype", "transformers_version") or name.startswith("_"):
            continue
        if isinstance(getattr(own, name), transformers.PreTrainedConfig):
            compare(getattr(kept, name), getattr(own, name))
            continue
        assert getattr(kept, name) == json.loads(json.dumps(value)), name
        checked += 1
    for other, name in own.attribute_map.items():
        if hasattr(own, other):
            assert getattr(kept, other) == getattr(own, name)
    assert checked > 10
    assert not hasattr(kept, "no_such_value")


def test_a_value_that_is_no_json_is_never_taken_for_an_absent_one(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", model_type="llama")
    read_config(folder)
    kept = read_config(folder)
    with pytest.raises(ValueError, match="id2label"):
        getattr(kept, "id2label", None)


def test_a_changed_config_is_read_anew(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", model_type="llama", hidden_size=64)
    assert [read_config(folder).hidden_size for _ in range(2)] == [64, 64]
    write_config(folder, model_type="llama", hidden_size=96)
    assert [read_config(folder).hidden_size for _ in range(2)] == [96, 96]


def test_a_refused_config_is_refused_each_time(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", model_type="llama", attn_implementation="user/kernel")
    for _ in range(2):
        with pytest.raises(ModelError, match="asks for the kernel"):
            read_config(folder)
    write_config(folder, model_type="no such type")
    for _ in range(2):
        with pytest.raises(ModelError, match="cannot be used"):
            read_config(folder)


@pytest.mark.parametrize("kind", ["configs", "tokenizers"])
@pytest.mark.parametrize("damage", ["changed", "emptied", "without digests"])
def test_damaged_kept_files_are_written_anew(
    kind: str, damage: str, tiny: Tiny, own_cache: Path
) -> None:
    folder = tiny("llama")

    def values() -> Any:
        codec = HuggingFaceCodec(folder)
        return codec.encode_texts(TEXTS), read_config(folder).hidden_size

    expected = values()
    (kept,) = (own_cache / kind).iterdir()
    for path in list(kept.iterdir()):
        if damage == "without digests":
            if path.name == "digests.json":
                path.unlink()
        else:
            path.write_text('{"hidden_size": 1}' if damage == "changed" else "")
    assert values() == expected
    assert is_complete(kept)
    assert values() == expected


def test_a_cache_that_cannot_be_written_costs_time_only(tiny: Tiny, own_cache: Path) -> None:
    folder = tiny("llama")
    own_cache.write_text("a file where the cache folder should be")
    for _ in range(2):
        assert read_config(folder).model_type == "llama"
        assert HuggingFaceCodec(folder).encode_texts(["hello"])


def test_a_folder_that_is_not_to_be_kept_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("1")
    folder = derived_folder("kind", [tmp_path / "source"], ())
    fill_derived(folder, lambda target: bool((target / "file").write_text("a") and False))
    assert not folder.exists()
    assert list(folder.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_kept_tokenizer_encodes_as_its_own_files(
    name: str, tiny: Tiny, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny(name)
    first = HuggingFaceCodec(folder)
    monkeypatch.setattr(tokenizer_loading, "_load_new", None)  # it would fail
    second = HuggingFaceCodec(folder)
    assert second.encode_texts(TEXTS) == first.encode_texts(TEXTS)
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    if first.has_chat_template:
        assert second.encode_chats(chats) == first.encode_chats(chats)
    for ids in first.encode_texts(TEXTS):
        assert second.decode(ids) == first.decode(ids)
    assert second.end_token_id == first.end_token_id


def test_a_changed_template_is_read_anew(tiny: Tiny) -> None:
    folder = tiny("llama")
    chat = [[{"role": "user", "content": "hello"}]]
    (before,) = HuggingFaceCodec(folder).encode_chats(chat)
    template = folder / "chat_template.jinja"
    template.write_text("hello" + template.read_text())
    (after,) = HuggingFaceCodec(folder).encode_chats(chat)
    assert after != before


def test_a_tokenizer_with_methods_of_its_own_is_not_kept(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    folder = tiny("llama")
    plain = tokenizer_loading.load_tokenizer(folder)

    class Own(TokenizersBackend):
        def _decode(self, *given: Any, **options: Any) -> str:
            return "decoded in another way"

    plain.__class__ = Own
    monkeypatch.setattr(tokenizer_loading, "_load_new", lambda _: plain)
    kept = tokenizer_loading._kept_folder(folder)
    assert kept is not None
    shutil.rmtree(kept)
    assert tokenizer_loading.load_tokenizer(folder).decode([5]) == "decoded in another way"
    assert not kept.exists()
    assert tokenizer_loading.load_tokenizer(folder).decode([5]) == "decoded in another way"


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_a_later_start_does_not_load_the_classes_of_configs(tiny: Tiny, quantization: str) -> None:
    options = f"engine='packed', quantization={quantization!r}"
    folder = str(tiny("llama"))
    program = (
        "import sys\n"
        "import packhorse\n"
        f"packhorse.load({folder!r}, engine=packhorse.EngineConfig({options})).close()\n"
        "print('transformers.configuration_utils' in sys.modules, 'torch._dynamo' in sys.modules)\n"
    )
    run = [sys.executable, "-c", program]
    seen = [
        subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    assert seen == [["True", "True"], ["False", "False"]]
