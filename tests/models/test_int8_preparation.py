"""int8 models in the cache: their preparation, stored recipes, and what is refused."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from packhorse.errors import ConfigError, ModelError
from packhorse.evaluation.teacher_forcing import (
    TeacherForcedModel,
    teacher_forced,
)
from packhorse.models import PreparedModel, cached_models, int8_preparation, prepare
from packhorse.models.convert import convert_checkpoint
from packhorse.models.hashing import file_sha256
from packhorse.models.original import find_original
from packhorse.quantization.recipe import CalibrationRow, Recipe
from scorers import ctranslate2_scorer, packed_scorer, transformers_scorer

Tiny = Callable[[str], Path]
ROWS = [(tuple(range(3, 40, 2)), tuple(range(100, 160, 3))), ((9, 8, 7, 6), (250, 40, 31, 77))]
RECIPE = Recipe("smooth", 0, {"0.qkv": 0.5, "1.mlp": 0.3}, (CalibrationRow((4, 5, 6), (7, 8)),))


def int8(folder: Path, method: str = "auto", **options: Any) -> PreparedModel:
    return prepare(
        str(folder),
        engine="ctranslate2",
        quantization="int8",
        quantization_method=method,
        **options,
    )


def divergence(reference: TeacherForcedModel, prepared: PreparedModel) -> float:
    found = teacher_forced(reference, ctranslate2_scorer(prepared.folder, "int8"), ROWS)
    assert found is not None
    return found.kl_divergence.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "asked", "method"),
    [
        ("tied", "auto", "rotate-smooth"),
        ("tied", "smooth", "smooth"),
        ("tied", "rotate", "rotate"),
        ("tied", "plain", "plain"),
        ("gpt2", "auto", "smooth"),
    ],
)
def test_an_int8_model_names_its_quantization_method(
    tiny: Tiny, home: Path, name: str, asked: str, method: str
) -> None:
    folder = tiny(name)
    prepared = int8(folder, asked)
    assert (prepared.quantization, prepared.quantization_method) == ("int8", method)
    moved = prepare(str(prepared.folder))
    assert moved.quantization_method == ("" if asked == "plain" else method)
    assert int8(folder, asked) == prepared


@pytest.mark.slow
def test_it_loses_less_than_a_plain_one(tiny: Tiny, home: Path) -> None:
    folder = tiny_models.with_outlier(tiny("llama"))
    reference = transformers_scorer(folder)
    plain = divergence(reference, int8(folder, "plain"))
    for method in ("auto", "smooth", "rotate"):
        assert divergence(reference, int8(folder, method)) < 0.5 * plain


@pytest.mark.slow
def test_other_formats_are_left_alone(tiny: Tiny, home: Path) -> None:
    folder = str(tiny("llama"))
    for form in ("float32", "int16"):
        assert prepare(folder, engine="ctranslate2", quantization=form).quantization_method == ""
    with pytest.raises(ConfigError, match="is for int8, not for float32"):
        prepare(folder, engine="ctranslate2", quantization_method="rotate")
    with pytest.raises(ConfigError, match="no quantization method 'awq'"):
        prepare(folder, quantization_method="awq")


def test_a_family_that_cannot_be_folded_is_converted_plain(
    tmp_path: Path, home: Path, messages: list[str]
) -> None:
    folder = tiny_models.tiny_gptj(tmp_path / "gptj")
    prepared = int8(folder, report=messages.append)
    assert prepared.quantization_method == "plain"
    assert messages == [
        "gptj models cannot be prepared for int8: it is converted as it is, and may lose much of "
        "its accuracy",
        "converting gptj to CTranslate2 int8",
    ]
    assert prepared.folder == int8(folder, "plain").folder
    with pytest.raises(ConfigError, match="gptj models cannot be quantized by rotate") as caught:
        int8(folder, "rotate")
    assert "auto, plain" in caught.value.hint
    assert len(cached_models()) == 1


def test_a_method_the_family_cannot_have(tiny: Tiny, home: Path) -> None:
    with pytest.raises(ConfigError, match="gpt2 models cannot be quantized by rotate-smooth") as e:
        int8(tiny("gpt2"), "rotate-smooth")
    assert e.value.hint == "for this family: auto, plain, smooth"


@pytest.mark.slow
def test_too_little_memory(
    tiny: Tiny, home: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("llama")
    monkeypatch.setattr(int8_preparation, "available_bytes", lambda: 1_000_000_000)
    assert int8(folder, report=messages.append).quantization_method == "plain"
    assert "takes 3.1 GB of memory, and 1.0 GB are free: it is converted as it is" in messages[0]
    with pytest.raises(ModelError, match=r"1\.0 GB are free") as caught:
        int8(folder, "rotate")
    assert "--quantization-method plain" in caught.value.hint
    monkeypatch.undo()
    monkeypatch.setenv("PACKHORSE_HOME", str(home))
    assert int8(folder).quantization_method == "rotate-smooth", "it is tried again later"


def test_memory_grows_with_width_and_vocabulary(tiny: Tiny) -> None:
    """Hessians and their inverse are channels x channels, and the head is untied."""
    checkpoint = find_original(str(tiny("tied")), allow_pickle=False, report=print).checkpoint()
    path = checkpoint.folder / "config.json"
    config = json.loads(path.read_text())

    def needed(**changes: int) -> int:
        path.write_text(json.dumps(config | changes))
        return int8_preparation.preparation_bytes(checkpoint)

    usual = needed()
    assert needed(intermediate_size=10_000) - usual == pytest.approx(24 * 10_000**2, rel=0.01)
    assert needed(vocab_size=1_000_000) - usual == 4 * 64 * 999_700
    searching = int8_preparation.search_bytes(checkpoint, 1000)
    assert searching > 3 * 4 * 64 * 1_000_000 + 4 * 1000 * 1_000_000


@pytest.mark.slow
def test_only_the_converter_holds_the_weights_it_converts(
    tiny: Tiny, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = list[object]()

    def converted(*arguments: Any) -> None:
        held.extend(each for each in gc.get_objects() if type(each).__name__ == "FoldableModel")
        convert_checkpoint(*arguments)

    monkeypatch.setattr(int8_preparation, "convert_checkpoint", converted)
    assert int8(tiny("llama")).quantization_method == "rotate-smooth"
    assert held == []


@pytest.mark.slow
def test_a_recipe_that_was_found_is_preferred(tiny: Tiny, home: Path) -> None:
    folder = tiny("llama")
    quick = int8(folder)
    original = find_original(str(folder), allow_pickle=False, report=print)
    int8_preparation.store_recipe(original.title, original.identity(), RECIPE, {})
    tuned = int8(folder)
    assert tuned.folder.name.startswith("llama-int8-tuned-")
    assert tuned.quantization_method == "smooth"
    assert tuned.fingerprint not in (quick.fingerprint, int8(folder, "smooth").fingerprint)
    assert int8(folder, "rotate-smooth").quantization_method == "rotate-smooth"
    (tuned.folder / "model.bin").unlink()
    assert int8(folder) == tuned, "it is built again from the recipe alone"
    changed = Recipe("smooth", 0, {"0.qkv": 0.6}, RECIPE.rows)
    int8_preparation.store_recipe(original.title, original.identity(), changed, {})
    assert int8(folder).fingerprint != tuned.fingerprint


@pytest.mark.slow
def test_a_recipe_belongs_to_one_model(tiny: Tiny, home: Path) -> None:
    folder = tiny("llama")
    original = find_original(str(folder), allow_pickle=False, report=print)
    int8_preparation.store_recipe(original.title, original.identity(), RECIPE, {})
    tiny_models.tiny_llama(folder, seed=3)
    assert int8(folder).quantization_method == "rotate-smooth"


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["{", "[]", '{"recipe": {"code": "quantization-0"}}'])
def test_a_recipe_that_cannot_be_used(
    tiny: Tiny, home: Path, messages: list[str], damage: str
) -> None:
    folder = tiny("llama")
    original = find_original(str(folder), allow_pickle=False, report=print)
    path = int8_preparation.store_recipe(original.title, original.identity(), RECIPE, {})
    path.write_text(damage)
    assert int8(folder, report=messages.append).quantization_method == "rotate-smooth"
    assert "run packhorse quantize again" in messages[0]


@pytest.mark.slow
def test_a_recipe_for_plain_int8(tiny: Tiny, home: Path) -> None:
    folder = tiny("llama")
    original = find_original(str(folder), allow_pickle=False, report=print)
    plain = Recipe("plain", 0, {}, ())
    int8_preparation.store_recipe(original.title, original.identity(), plain, {})
    assert int8(folder) == int8(folder, "plain")


def packed_int8(folder: Path, method: str = "auto", **options: Any) -> PreparedModel:
    return prepare(
        str(folder), engine="packed", quantization="int8", quantization_method=method, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "asked", "method"),
    [
        ("tied", "auto", "plain"),
        ("llama", "rotate-smooth", "rotate-smooth"),
        ("gpt2", "auto", "smooth"),
        ("gpt2", "plain", "plain"),
    ],
)
def test_the_packed_engine_gets_int8_weights(
    tiny: Tiny, home: Path, name: str, asked: str, method: str
) -> None:
    folder = tiny(name)
    prepared = packed_int8(folder, asked)
    assert (prepared.kind, prepared.engine) == ("huggingface", "packed")
    assert (prepared.quantization, prepared.quantization_method) == ("int8", method)
    assert prepared.codec().encode_fragment("loads") == prepare(
        str(folder)
    ).codec().encode_fragment("loads")
    again = packed_int8(prepared.folder)
    assert (again.folder, again.quantization_method) == (prepared.folder, method)
    before, after = transformers_scorer(folder), packed_scorer(prepared.folder, "int8")
    found = teacher_forced(before, after, ROWS)
    assert found is not None
    assert found.kl_divergence.value < 0.1


@pytest.mark.slow
def test_packed_int8_loses_less_when_it_is_prepared(tiny: Tiny, home: Path) -> None:
    folder = tiny_models.with_outlier(tiny("llama"))
    reference = transformers_scorer(folder)

    def lost(method: str) -> float:
        prepared = packed_int8(folder, method)
        found = teacher_forced(reference, packed_scorer(prepared.folder, "int8"), ROWS)
        assert found is not None
        return found.kl_divergence.value

    assert lost("smooth") < 0.1
    assert lost("auto") < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "ctranslate2", "packed"])
def test_only_the_packed_engine_in_int8_takes_its_weights(
    tiny: Tiny, home: Path, engine: str
) -> None:
    folder = packed_int8(tiny("llama")).folder
    with pytest.raises(ModelError, match="holds int8 weights for the packed engine") as refused:
        prepare(str(folder), engine=engine)
    assert "--engine packed --quantization int8" in refused.value.hint


@pytest.mark.slow
def test_int8_weights_of_another_version_are_refused(tiny: Tiny, home: Path) -> None:
    folder = packed_int8(tiny("llama")).folder
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["version"] = 99
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="int8 weights of version 99 are not known"):
        packed_int8(folder)


@pytest.mark.slow
def test_cached_packed_int8_needs_no_original(
    tiny: Tiny, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither unpacked again nor read again, and a GGUF file is read once."""
    file = tiny_models.tiny_gguf(tiny("llama"))
    prepared = packed_int8(file)
    (unpacked,) = home.glob("*-hf-*")
    shutil.rmtree(unpacked)
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return file_sha256(path)

    monkeypatch.setattr("packhorse.models.original.file_sha256", counted)
    monkeypatch.setattr("packhorse.models.cache.file_sha256", counted)
    assert packed_int8(file) == prepared
    assert read.count(file) == 1
    assert {path.parent for path in read} == {file.parent, prepared.folder}
    assert not unpacked.exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "plain"])
def test_a_folder_is_read_once_for_packed_int8(
    tiny: Tiny, home: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    folder, read = tiny("gpt2"), list[str]()

    def counted(path: Path) -> str:
        read.append(path.name)
        return file_sha256(path)

    packed_int8(folder, method)
    monkeypatch.setattr("packhorse.models.hashing.file_sha256", counted)
    packed_int8(folder, method)
    assert read.count("model.safetensors") == 1


@pytest.mark.slow
def test_packed_int8_follows_the_recipe_that_was_found(tiny: Tiny, home: Path) -> None:
    folder = tiny("llama")
    quick = packed_int8(folder)
    original = find_original(str(folder), allow_pickle=False, report=print)
    int8_preparation.store_recipe(original.title, original.identity(), RECIPE, {})
    tuned = packed_int8(folder)
    assert tuned.folder.name.startswith("llama-packed-int8-tuned-")
    assert (quick.quantization_method, tuned.quantization_method) == ("plain", "smooth")
    assert packed_int8(folder, "rotate-smooth").quantization_method == "rotate-smooth"


def test_packed_int8_that_is_not_prepared(
    tiny: Tiny, tmp_path: Path, home: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("gpt2")
    plain = packed_int8(folder, "plain")
    assert plain.folder.name.startswith("gpt2-packed-int8-")
    assert plain.quantization_method == "plain"
    with pytest.raises(ConfigError, match="cannot be quantized by rotate"):
        packed_int8(folder, "rotate")
    other = tiny_models.tiny_gptj(tmp_path / "gptj")
    assert packed_int8(other).folder == other, "the engine says what it cannot run"
    monkeypatch.setattr(int8_preparation, "available_bytes", lambda: 2_000_000_000)
    assert packed_int8(folder, report=messages.append).folder == plain.folder
    assert messages == [
        "preparing the model for int8 takes 3.1 GB of memory, and 2.0 GB are free: its weights "
        "are rounded to nearest, which is less accurate"
    ]


def test_the_quick_method_names_packhorse_quantize_and_takes_little_memory(
    tiny: Tiny, home: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_preparation, "available_bytes", lambda: 2_000_000_000)
    folder = tiny("llama")
    assert packed_int8(folder, report=messages.append).quantization_method == "plain"
    assert "packhorse quantize llama may lose less accuracy" in messages[0]
    messages.clear()
    packed_int8(folder, report=messages.append)
    assert messages == []
