"""Every verb with each of its streams closed, broken, full and limited to ASCII.

What is printed is for people: it never ends or changes work. Exit code 0 means that the result is
complete, which for some verbs is what they print.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO, cast

import pytest

from packhorse.cli import PRINTING_VERBS, VERBS
from packhorse.jobs.streams import GuardedStream

FAKE = ["--engine", "fake", "--max-new-tokens", "4"]
PACKHORSE = f"{sys.executable} -m packhorse"

# Arguments, the file that the verb makes, if any, and its exit code. What takes minutes or a real
# model is refused here, which prints too.
CASES: dict[str, tuple[list[str], str | None, int]] = {
    "run": (["run", "x", "in.jsonl", "-o", "new.jsonl", *FAKE], "new.jsonl", 0),
    "run --json": (["run", "x", "in.jsonl", "-o", "new.jsonl", "--json", *FAKE], "new.jsonl", 0),
    "status": (["status", "done.jsonl"], None, 0),
    "export": (["export", "done.jsonl", "--to", "new.jsonl"], "new.jsonl", 0),
    "models": (["models"], None, 0),
    "--help": (["--help"], None, 0),
    "--version": (["--version"], None, 0),
    "plan": (["plan", "x", "absent.jsonl", "--engines", "fake"], None, 2),
    "prepare": (["prepare", "./absent"], None, 2),
    "compare": (["compare", "x", "absent.jsonl", "--engines", "fake"], None, 2),
    "assess": (["assess", "x", "absent.csv", "--engine", "fake"], None, 2),
    "classify": (["classify", "absent", "in.jsonl", "-o", "new.jsonl"], None, 2),
    "quantize": (["quantize", "./absent", "absent.jsonl"], None, 2),
    "calibrate": (["calibrate", "./absent"], None, 2),
    "serve": (["serve", "x", "--engine", "fake", "--port", "99999"], None, 2),
    "load-test": (["load-test", "not-a-url", "absent.jsonl"], None, 2),
}
PRINTED = (*PRINTING_VERBS, "--help", "--version", "run --json")
STREAMS = {
    "stdout full": ">/dev/full",
    "stdout broken": "| true",
    "stderr full": "2>/dev/full",
    "both broken": "2>&1 | true",
    "all closed": "<&- >&- 2>&-",
    "both full": ">/dev/full 2>/dev/full",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "in.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    command = [sys.executable, "-m", "packhorse", "run", "x", "in.jsonl", "-o", "done.jsonl", *FAKE]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def ended(folder: Path, words: str, redirection: str) -> tuple[int, str]:
    """The exit code of packhorse itself and all that is still heard of it."""
    script = f"set -o pipefail; exec 9>code; {{ {PACKHORSE} {words}; echo $? >&9; }} {redirection}"
    run = subprocess.run(
        ["bash", "-c", script],  # noqa: S607
        cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "PACKHORSE_HOME": str(folder / "home")},
    )  # fmt: skip
    return int((folder / "code").read_text()), run.stdout + run.stderr


def reset(folder: Path) -> None:
    subprocess.run(["rm", "-rf", *map(str, folder.glob("new.*"))], check=True)  # noqa: S607


def test_every_verb_has_a_case() -> None:
    assert {name.split()[0] for name in CASES} >= set(VERBS)


@pytest.mark.parametrize("stream", STREAMS)
def test_streams(folder: Path, stream: str) -> None:
    """All verbs in one test, since each is a process of its own."""
    for name, (arguments, made, code) in CASES.items():
        if code == 2 and stream != "both full":
            continue
        reset(folder)
        found, said = ended(folder, " ".join(arguments), STREAMS[stream])
        is_lost = STREAMS[stream].startswith(">/dev/full") and name in PRINTED
        assert found == (2 if is_lost else code), (name, said)
        assert "Traceback" not in said, name
        assert "Exception ignored" not in said, name
        if made is not None:
            assert len((folder / made).read_text().splitlines()) == 2, name


def test_an_empty_standard_input_is_one_clear_line(folder: Path) -> None:
    reset(folder)
    for redirection in ("<&-", "</dev/null", "</dev/full"):
        words = " ".join(["run", "x", "-", "-o", "new.jsonl", *FAKE])
        code, said = ended(folder, words, redirection)
        assert code == 2
        assert "packhorse: standard input is " in said
        assert "Traceback" not in said


@pytest.mark.parametrize("errors", ["ascii", "ascii:strict", "latin-1"])
def test_text_that_an_encoding_does_not_know(folder: Path, errors: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": errors, "LC_ALL": "C", "PYTHONUTF8": "0"}
    name = "größer 数.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "packhorse", "run", "x", "in.jsonl", "-o", name, *FAKE],
        cwd=folder, capture_output=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"2 rows: 2 completed" in done.stdout
    assert len((folder / name).read_text().splitlines()) == 2


LIBRARIES = """
import logging, sys, warnings
from packhorse.jobs.streams import guarded_streams
with guarded_streams():
    from rich.console import Console
    logging.warning("of a library")
    warnings.warn("of another")
    Console(file=sys.stderr).print("of rich")
    print("a lone surrogate \\ud800", file=sys.stderr, flush=True)
    open("made", "w").write("done")
sys.exit(0)
"""


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&1 | true"])
def test_what_libraries_print_ends_nothing(tmp_path: Path, redirection: str) -> None:
    (tmp_path / "libraries.py").write_text(LIBRARIES)
    script = f"exec 9>code; {{ {sys.executable} libraries.py; echo $? >&9; }} {redirection}"
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=False)  # noqa: S607
    assert (tmp_path / "code").read_text() == "0\n"
    assert (tmp_path / "made").read_text() == "done"


def test_a_file_never_gets_the_descriptor_of_a_closed_stream(tmp_path: Path) -> None:
    """Else what C libraries print would be written into it."""
    code = (
        "import os\nfrom packhorse.jobs.streams import guarded_streams\n"
        "with guarded_streams():\n"
        "    file = open('file', 'w')\n    os.write(2, b'printed')\n"
        "    assert file.fileno() > 2\n"
    )
    script = f'{sys.executable} -c "$0" <&- >&- 2>&-'
    done = subprocess.run(["bash", "-c", script, code], cwd=tmp_path, check=False)  # noqa: S607
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""


class Flaky(io.StringIO):
    """A disk that is full until it is not."""

    is_full = True

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_stream_goes_on_once_there_is_room() -> None:
    disk = Flaky()
    stream = GuardedStream(cast(TextIO, disk))
    stream.write("lost")
    disk.is_full = False
    stream.write("kept")
    assert disk.getvalue() == "kept"
    assert stream.failure is not None


def test_json_is_whole_or_an_error(folder: Path) -> None:
    code, said = ended(folder, "status done.jsonl --json", "")
    assert code == 0
    assert json.loads(said)["completed"] == 2
