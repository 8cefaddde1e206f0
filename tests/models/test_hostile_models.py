"""Invalid model files are refused quickly: exit code 2, one line and a hint, and no code is run."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import hostile_gguf
from hostile_models import CASES, CONVERTED_CASES, MARKER, REACH_AN_ENGINE
from packhorse.cli import main
from packhorse.errors import ModelError
from packhorse.models import prepare
from tiny_models import tiny_gguf

MAX_SECONDS = 5
Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs a model over one prompt and returns the one line that refuses it."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "The packhorse"}\n')

    def run(model: Path, *options: str) -> str:
        begun = time.process_time()
        code = main(["run", str(model), str(source), "-o", str(tmp_path / "o.jsonl"), *options])
        told = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
        assert code == 2, told
        assert time.process_time() - begun < MAX_SECONDS
        said = [line for line in told if line.startswith("packhorse: ")]
        assert len(said) == 1, told
        place = told.index(said[0])
        assert told[place + 1 :], "there is no hint"
        assert told[place + 1].startswith("  hint: ")
        assert len(told) == place + 2, told
        assert not any("Traceback" in line for line in told)
        assert len(said[0]) < 1000
        print(*told, sep="\n")
        return said[0]

    return run


ENGINES = ("transformers", "packed", "ctranslate2")
PAIRS = [
    (name, engine)
    for place, name in enumerate(CASES)
    for engine in (ENGINES if name in REACH_AN_ENGINE else (ENGINES[place % len(ENGINES)],))
    # The packed engine reads a tokenizer after it has compiled its kernels, which takes seconds.
    if not (engine == "packed" and name.startswith("tokenizer ") and name in REACH_AN_ENGINE)
]


@pytest.mark.parametrize(("name", "engine"), PAIRS)
def test_folders_that_lie(
    built: dict[str, Path], tmp_path: Path, refused: Refused, name: str, engine: str
) -> None:
    change, message = CASES[name]
    folder = Path(shutil.copytree(built["llama"], tmp_path / "model"))
    change(folder)
    said = refused(folder, "--engine", engine)
    assert re.search(message, said), said
    assert not (folder / MARKER).exists()


@pytest.fixture(scope="module")
def gguf(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a tiny GGUF file."""
    folder = tmp_path_factory.mktemp("gguf") / "llama"
    return tiny_gguf(Path(shutil.copytree(built["llama"], folder))).read_bytes()


@pytest.mark.parametrize("name", hostile_gguf.CASES)
def test_gguf_files_that_lie(gguf: bytes, tmp_path: Path, refused: Refused, name: str) -> None:
    change, message = hostile_gguf.CASES[name]
    changed = change(gguf)
    assert changed != gguf
    (tmp_path / "model.gguf").write_bytes(changed)
    said = refused(tmp_path / "model.gguf")
    assert re.search(message, said), said


@pytest.mark.parametrize("seed", range(24))
def test_gguf_files_with_changed_bytes(gguf: bytes, tmp_path: Path, home: Path, seed: int) -> None:
    draw = random.Random(seed)
    content = bytearray(gguf)
    for _ in range(draw.choice([1, 4, 16])):
        content[draw.randrange(4, 8000)] = draw.randrange(256)
    (tmp_path / "model.gguf").write_bytes(content)
    begun = time.process_time()
    with contextlib.suppress(ModelError):
        prepare(str(tmp_path / "model.gguf"), report=lambda _: None)
    assert time.process_time() - begun < MAX_SECONDS


@pytest.fixture(scope="module")
def converted(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own CTranslate2 folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PACKHORSE_HOME", str(tmp_path_factory.mktemp("home")))
        entry = prepare(str(built["llama"]), engine="ctranslate2", report=lambda _: None).folder
    folder = Path(shutil.copytree(entry, tmp_path_factory.mktemp("converted") / "model"))
    (folder / "packhorse-manifest.json").unlink()
    return folder


@pytest.mark.parametrize("name", CONVERTED_CASES)
def test_converted_folders_that_lie(
    converted: Path, tmp_path: Path, refused: Refused, name: str
) -> None:
    change, message = CONVERTED_CASES[name]
    folder = Path(shutil.copytree(converted, tmp_path / "model"))
    change(folder)
    said = refused(folder)
    assert re.search(message, said), said
