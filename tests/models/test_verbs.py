"""`packhorse prepare` and `packhorse models`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from packhorse.cli import main

Tiny = Callable[[str], Path]
Captured = pytest.CaptureFixture[str]


@pytest.mark.slow
def test_prepare_for_a_person(tiny: Tiny, home: Path, capsys: Captured) -> None:
    folder = tiny("llama")
    assert main(["prepare", str(folder), "--engine", "ctranslate2", "--quantization", "int16"]) == 0
    out, err = capsys.readouterr()
    assert err == "converting llama to CTranslate2 int16\n"
    assert f"{folder} is ready for ctranslate2" in out
    assert str(home / "llama-int16-") in out


def test_prepare_for_a_program(tiny: Tiny, home: Path, capsys: Captured) -> None:
    folder = tiny("llama")
    assert main(["prepare", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["engine"] == "packed"
    assert document["folder"] == str(folder)
    assert document["quantization"] == "float32"
    assert len(document["fingerprint"]) == 64
    assert document["bytes_on_disk"] > 400_000


def test_a_mistake_is_one_line_and_a_hint(home: Path, capsys: Captured) -> None:
    assert main(["prepare", "smolm2"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    message, hint = err.splitlines()
    assert message.startswith("packhorse: no model 'smolm2'")
    assert "did you mean smollm2-135m-instruct?" in hint


@pytest.mark.slow
def test_models_for_a_person(tiny: Tiny, home: Path, capsys: Captured) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "smollm2-135m-instruct" in out
    assert "Apache-2.0, 93 MB" in out
    assert "nothing yet" in out
    main(["prepare", str(tiny("llama")), "--engine", "ctranslate2"])
    capsys.readouterr()
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "ctranslate2 float32" in out
    assert "0.5 MB" in out


@pytest.mark.slow
def test_models_verified_for_a_program(tiny: Tiny, home: Path, capsys: Captured) -> None:
    main(["prepare", str(tiny("llama")), "--engine", "ctranslate2"])
    (folder,) = home.glob("llama-*")
    (folder / "model.bin").write_bytes(b"altered")
    capsys.readouterr()
    assert main(["models", "--verify", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in document["catalog"]] == [
        "smollm2-135m-instruct",
        "all-minilm-l6-v2",
    ]
    (cached,) = document["cached"]
    assert (cached["name"], cached["verified"]) == ("llama", False)
    assert document["cache"] == str(home)
