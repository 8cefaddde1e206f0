"""The scripts under examples/ run as they are."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from servers import FAKE, Served, served
from tiny_encoders import tiny_encoder

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.real_model
def test_python_api(demo_model_folder: Path) -> None:
    done = run("python_api.py", demo_model_folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert sum("prompt_too_long" in line for line in lines) == 1


@pytest.mark.real_model
def test_classify_csv(demo_model_folder: Path) -> None:
    done = run("classify_csv.py", demo_model_folder)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["id"] for row in rows] == ["t-1", "t-2", "t-3"]
    assert {row["label"] for row in rows} <= {"billing", "delivery", "damage"}


def test_resume(tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"row {i}"}) + "\n" for i in range(3)))
    arguments = (source, output, "--model", "any", "--engine", "fake")
    assert run("resume.py", *arguments).stdout.startswith("3 completed, 0 failed")
    source.write_text(source.read_text() + json.dumps({"prompt": "one more"}) + "\n")
    assert run("resume.py", *arguments).stdout.startswith("4 completed, 0 failed")
    assert run("resume.py", tmp_path / "absent.jsonl", output).returncode == 2


def test_openai_client(fake_server: Served) -> None:
    done = run("openai_client.py", fake_server.address)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_embeddings(tmp_path: Path) -> None:
    with served(*FAKE, "--embeddings", str(tiny_encoder(tmp_path / "encoder"))) as server:
        done = run("embeddings.py", server.address)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_what_changed(tmp_path: Path) -> None:
    source, outputs = tmp_path / "in.jsonl", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    source.write_text("".join(json.dumps({"prompt": f"row {i}"}) + "\n" for i in range(6)))
    for output, form in zip(outputs, ("float32", "int8"), strict=True):
        words = ["run", "any", str(source), "-o", str(output), "--engine", "fake"]
        command = [sys.executable, "-m", "packhorse", *words, "--quantization", form]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    done = run("what_changed.py", *outputs)
    assert done.returncode == 0, done.stderr
    assert "the same 6 rows" in done.stdout
    assert "fake float32" in done.stdout
    assert "identical rows" in done.stdout
    absent = run("what_changed.py", tmp_path / "absent.jsonl", outputs[1])
    assert absent.returncode == 1
    assert "absent.jsonl" in absent.stderr
