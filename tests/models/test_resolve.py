from __future__ import annotations

import re
from pathlib import Path

import pytest

from packhorse.errors import ConfigError, ModelError
from packhorse.models.catalog import CATALOG
from packhorse.models.resolve import (
    CatalogModel,
    CTranslate2Folder,
    GgufFile,
    HubModel,
    HuggingFaceFolder,
    default_engine_of,
    resolve,
)


def folder_of(path: Path, *names: str) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    return path


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["config.json"], HuggingFaceFolder),
        (["config.json", "model.safetensors"], HuggingFaceFolder),
        (["config.json", "model.bin", "vocabulary.json"], CTranslate2Folder),
        (["config.json", "model.bin", "vocabulary.txt"], CTranslate2Folder),
    ],
)
def test_folders(tmp_path: Path, names: list[str], kind: type) -> None:
    folder = folder_of(tmp_path / "model", *names)
    assert resolve(str(folder)) == kind(folder)


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        ([], "is empty", "give the Hugging Face folder"),
        (["README.md"], "has no config.json", "give the folder"),
        (["adapter_config.json", "adapter_model.safetensors"], "an adapter", "merge it"),
        (["adapter_config.json", "config.json"], "an adapter", "merge it"),
        (["model.bin", "config.json", "shared_vocabulary.json"], "translation", "decoder-only"),
        (["model.Q4.gguf"], "has no config.json", "did you mean .*model.Q4.gguf"),
        (["inner/config.json"], "has no config.json", "did you mean .*inner"),
        (
            ["snapshots/abc/config.json"],
            "is a folder of the hub.s cache",
            "did you mean .*snapshots/abc",
        ),
    ],
)
def test_folders_of_the_wrong_kind(
    tmp_path: Path, names: list[str], message: str, hint: str
) -> None:
    folder = folder_of(tmp_path / "model", *names)
    with pytest.raises(ModelError, match=message) as caught:
        resolve(str(folder))
    assert re.search(hint, caught.value.hint)


def test_a_gguf_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"GGUF\3\0\0\0")
    assert resolve(str(file)) == GgufFile(file)


@pytest.mark.parametrize(
    ("name", "message"),
    [("model.gguf", "not a GGUF file"), ("model.safetensors", "only a part of a model")],
)
def test_other_files(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(ModelError, match=message):
        resolve(str(tmp_path / name))


@pytest.mark.parametrize(
    ("model", "source"),
    [
        ("smollm2-135m-instruct", CatalogModel(CATALOG["smollm2-135m-instruct"])),
        ("SmolLM2-135M-Instruct", CatalogModel(CATALOG["smollm2-135m-instruct"])),
        ("org/name", HubModel("org/name", None)),
        ("org/na.me-1_B@v1.0", HubModel("org/na.me-1_B", "v1.0")),
        ("org/name@refs/pr/3", HubModel("org/name", "refs/pr/3")),
    ],
)
def test_names(model: str, source: object) -> None:
    assert resolve(model) == source


def test_an_existing_folder_comes_before_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "smollm2-135m-instruct", "config.json")
    monkeypatch.chdir(tmp_path)
    assert resolve("smollm2-135m-instruct") == HuggingFaceFolder(Path("smollm2-135m-instruct"))


@pytest.mark.parametrize("model", ["./absent", "/absent/model", "~/absent", "a/b/c", "absent.gguf"])
def test_a_path_that_does_not_exist(model: str) -> None:
    with pytest.raises(ModelError, match="there is no model at"):
        resolve(model)


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("smolm2-135m-instruct", "did you mean smollm2-135m-instruct?"),
        ("smollm2", "did you mean smollm2-135m-instruct?"),
        ("something-else-entirely", "names that need no files: smollm2-135m-instruct"),
    ],
)
def test_an_unknown_name_lists_the_known_and_the_closest(model: str, hint: str) -> None:
    with pytest.raises(ModelError, match="a catalog name or a hub id") as caught:
        resolve(model)
    assert hint in caught.value.hint


def test_an_embedding_model_generates_no_text() -> None:
    with pytest.raises(ModelError, match="computes embeddings"):
        resolve("all-minilm-l6-v2")


def test_no_model() -> None:
    with pytest.raises(ModelError, match="no model was given"):
        resolve(" ")


@pytest.mark.parametrize(
    ("names", "engine"),
    [
        (["config.json"], "transformers"),
        (["config.json", "model.bin", "vocabulary.json"], "ctranslate2"),
    ],
)
def test_engines_that_run_every_model_of_a_form(
    tmp_path: Path, names: list[str], engine: str
) -> None:
    assert default_engine_of(str(folder_of(tmp_path / "model", *names))) == engine


def test_catalog_names_and_pins_are_well_formed() -> None:
    for name, entry in CATALOG.items():
        assert name == entry.name == name.lower()
        assert len(entry.sha256) == 64
        assert int(entry.sha256, 16)


def test_transformers_does_not_run_a_ctranslate2_folder(tmp_path: Path) -> None:
    from packhorse.models import prepare

    folder = folder_of(tmp_path / "model", "config.json", "model.bin", "vocabulary.json")
    with pytest.raises(ConfigError, match="cannot run on transformers"):
        prepare(str(folder), engine="transformers")
