"""`packhorse run -o -`: rows on standard output, as they finish or in order."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from packhorse.cli import main
from packhorse.engines.fake import ANSWERS_VARIABLE

FAKE = ("--engine", "fake", "--max-new-tokens", "6")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = [
        {"id": n, "prompt": f"row {n} " + "long " * (n % 7 * 9), "place": n} for n in range(60)
    ]
    rows[5] = {"id": 5, "prompt": ""}
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    return path


def command(source: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "packhorse",
        "run",
        "fake",
        str(source),
        "-o",
        "-",
        *FAKE,
        *options,
    ]


def written(source: Path, *options: str) -> list[bytes]:
    run = subprocess.run(command(source, *options), capture_output=True, check=False)
    assert run.returncode == 3, run.stderr
    return run.stdout.splitlines()


@pytest.fixture
def expected(source: Path) -> list[bytes]:
    """The lines of a file."""
    assert main(["run", "fake", str(source), "-o", "out.jsonl", *FAKE]) == 3
    return Path("out.jsonl").read_bytes().splitlines()


def test_rows_are_those_of_a_file(source: Path, expected: list[bytes]) -> None:
    lines = written(source)
    assert sorted(lines) == sorted(expected)
    assert lines != expected  # shorter rows finish first
    assert written(source, "--ordered") == expected
    assert not list(Path().glob("stdout-*"))


def test_kept_columns_come_in_order(source: Path) -> None:
    assert main(["run", "fake", str(source), "-o", "kept.jsonl", "--keep", "place", *FAKE]) == 3
    kept = Path("kept.jsonl").read_bytes().splitlines()
    assert written(source, "--ordered", "--keep", "place") == kept


def test_what_cannot_be_streamed_is_refused(source: Path, capsys: Any) -> None:
    base = ["run", "fake", str(source), "-o", "-", *FAKE]
    assert main([*base, "--keep", "place"]) == 2
    assert "--ordered" in capsys.readouterr().err
    assert main([*base, "--json"]) == 2
    assert "--json and -o -" in capsys.readouterr().err
    line = {"custom_id": "a", "url": "/v1/chat/completions", "body": {"messages": []}}
    source.write_text(json.dumps(line) + "\n")
    assert main(base) == 2
    assert "OpenAI batch output" in capsys.readouterr().err


def test_rows_are_written_while_others_run(source: Path) -> None:
    environment = {**os.environ, "PACKHORSE_FAKE_SECONDS_PER_TOKEN": "0.2"}
    with subprocess.Popen(
        command(source, "--batching", "single"), stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for _ in range(4):
            assert json.loads(process.stdout.readline())
        assert process.poll() is None
        process.kill()


def test_a_reader_that_goes_away_ends_the_job_and_loses_nothing(
    source: Path, expected: list[bytes]
) -> None:
    environment = {**os.environ, "PACKHORSE_FAKE_SECONDS_PER_TOKEN": "0.02"}
    with subprocess.Popen(
        command(source), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
        process.wait(30)
    assert process.returncode == 2, errors
    assert "standard output cannot be written" in errors
    assert "Traceback" not in errors
    assert sorted(written(source)) == sorted(expected)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--ordered",)], ids=["any order", "ordered"])
def test_killed_and_continued(
    source: Path, expected: list[bytes], options: tuple[str, ...]
) -> None:
    environment = {**os.environ, "PACKHORSE_FAKE_SECONDS_PER_TOKEN": "0.01"}
    started = time.monotonic()
    subprocess.run(command(source, *options), capture_output=True, check=False, env=environment)
    seconds = time.monotonic() - started
    moments = random.Random(8)
    for _ in range(4):
        with Path("partial").open("wb") as file:
            process = subprocess.Popen(
                command(source, *options), stdout=file, stderr=subprocess.DEVNULL, env=environment
            )
            time.sleep(moments.uniform(0.2, 1.0) * seconds)
            process.kill()
            process.wait()
        begun = Path("partial").read_bytes().splitlines()
        assert set(begun) <= set(expected)
        lines = written(source, *options)
        assert sorted(lines) == sorted(expected)
        if options:
            assert lines == expected
            assert begun == expected[: len(begun)]


def test_answers_of_several_choices_are_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([["x", "<think>Hm.</think>yes"]]))
    monkeypatch.setenv(ANSWERS_VARIABLE, str(answers))
    source.write_text('{"id": "a", "prompt": "x", "n": 2, "max_tokens": 99}\n')
    options = ("--thinking-tags", "<think>,</think>")
    run = subprocess.run(command(source, *options), capture_output=True, check=True)
    row = json.loads(run.stdout)
    assert (row["text"], row["reasoning"], len(row["choices"])) == ("yes", "Hm.", 2)
