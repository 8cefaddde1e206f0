"""Every verb with each of its streams closed, broken, full and limited to ASCII.

Messages never stop or change work. Exit code 0 means that the result is complete; for some verbs
the result is what they print.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

import pytest

from labelled import texts, write_csv
from packhorse.cli import PRINTING_VERBS, VERBS
from packhorse.jobs.streams import GuardedStream
from servers import Served

FAKE = ["--engine", "fake", "--max-new-tokens", "4"]
PACKHORSE = f"{sys.executable} -m packhorse"
MODULES = [
    "torch", "asyncio", "psutil", "filelock", "packhorse.cli.run", "packhorse.cli.compare",
    "packhorse.inference.model", "packhorse.jobs.frame", "packhorse.engines.fake",
    "packhorse.estimate", "packhorse.calibration", "packhorse.compare.runner",
]  # fmt: skip
"""What most verbs import; see `forked_cli`."""
MODEL_LIBRARIES = ["transformers", "ctranslate2", "sklearn.linear_model"]


@dataclass(frozen=True)
class Case:
    """Arguments of a command, its exit code, and the file or folder that it writes."""

    arguments: list[str]
    code: int = 0
    writes: str | None = None


QUICK = {
    "run": Case(["run", "x", "in.jsonl", "-o", "new.jsonl", *FAKE], writes="new.jsonl"),
    "run --json": Case(
        ["run", "x", "in.jsonl", "-o", "new.jsonl", "--json", *FAKE], writes="new.jsonl"
    ),
    "status": Case(["status", "done.jsonl"]),
    "export": Case(["export", "done.jsonl", "--to", "new.jsonl"], writes="new.jsonl"),
    "models": Case(["models"]),
    "plan": Case(["plan", "x", "in.jsonl", "--engines", "fake"]),
    "calibrate": Case(["calibrate", "x", "--engine", "fake"]),
    "--help": Case(["--help"]),
    "--version": Case(["--version"]),
    "prepare refused": Case(["prepare", "./absent"], 2),
    "compare refused": Case(["compare", "x", "absent.jsonl", "--engines", "fake"], 2),
    "assess refused": Case(["assess", "x", "absent.csv", "--engine", "fake"], 2),
    "classify refused": Case(["classify", "absent", "in.jsonl", "-o", "new.jsonl"], 2),
    "quantize refused": Case(["quantize", "./absent"], 2),
    "serve refused": Case(["serve", "x", "--engine", "fake", "--port", "99999"], 2),
    "load-test refused": Case(["load-test", "not-a-url", "absent.jsonl"], 2),
    "usage error": Case(["run", "--no-such-option"], 2),
}
SLOW = {
    "prepare": Case(["prepare", "./gpt2", "--engine", "ctranslate2"]),
    "quantize": Case(["quantize", "./gpt2", "--rows", "9", "--method", "plain"]),
    "compare": Case(
        [
            "compare", "x", "in.jsonl", "--engines", "fake", "--quantizations", "float32",
            "--batchings", "single", "--sample", "2", "--repeats", "1", "--max-new-tokens", "4",
            "--reference", "fake:float32", "--embeddings", "none", "-o", "new.report",
        ],
        writes="new.report/report.md",
    ),
    "assess": Case(
        [
            "assess", "x", "rows.csv", "--engine", "fake", "--embeddings", "none",
            "-o", "new.report",
        ],
        writes="new.report/report.md",
    ),
    "decide": Case(
        [
            "decide", "x", "in.jsonl", "--questions", "questions.jsonl", "-o", "new.jsonl",
            "--engine", "fake",
        ],
        writes="new.jsonl",
    ),
    "classify": Case(
        ["classify", "assessed/winner", "rows.csv", "-o", "new.jsonl"], writes="new.jsonl"
    ),
}  # fmt: skip
PRINTED = (*PRINTING_VERBS, "--help", "--version", "run --json")
"""Whose result is what they print."""
STATES = [
    *((state, "open", "open") for state in ("closed", "broken", "full")),
    *(("open", state, "open") for state in ("closed", "broken", "full")),
    *(("open", "open", state) for state in ("closed", "broken", "full")),
    *((state, state, state) for state in ("closed", "broken", "full")),
]
ALL_AT_ONCE = STATES[-3:]
Streams = tuple[str, str, str]


@dataclass(frozen=True)
class ForkedCLI:
    """Commands in children of one process that has imported what they need; see `forked_cli`."""

    folder: Path
    process: subprocess.Popen[str]

    def ended(self, arguments: list[str], states: Streams, modules: list[str]) -> tuple[int, str]:
        """Return the exit code of a command and what it wrote to its open streams."""
        log = self.folder / "log"
        log.write_text("")
        request = {
            "arguments": arguments,
            "states": states,
            "modules": modules,
            "folder": str(self.folder),
            "log": str(log),
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), log.read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job and its input."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "in.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    (folder / "questions.jsonl").write_text('{"name": "q", "question": "One?"}\n')
    command = [sys.executable, "-m", "packhorse", "run", "x", "in.jsonl", "-o", "done.jsonl", *FAKE]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def forked(folder: Path) -> Iterator[ForkedCLI]:
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forked_cli.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PACKHORSE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        yield ForkedCLI(folder, process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def with_models(forked: ForkedCLI, built: dict[str, Path]) -> ForkedCLI:
    """The same folder with a tiny model, and with labelled rows and their saved classifier."""
    shutil.copytree(built["gpt2"], forked.folder / "gpt2")
    write_csv(forked.folder / "rows.csv", texts(40, learnable=True))
    assess = [*SLOW["assess"].arguments[:-1], "assessed"]
    code, said = forked.ended(assess, ("open", "open", "open"), MODULES + MODEL_LIBRARIES)
    assert code == 0, said
    return forked


def ended(folder: Path, words: str, redirection: str) -> tuple[int, str]:
    """The exit code of packhorse in a process of its own, and all that it wrote."""
    script = f"set -o pipefail; exec 9>code; {{ {PACKHORSE} {words}; echo $? >&9; }} {redirection}"
    run = subprocess.run(
        ["bash", "-c", script],  # noqa: S607
        cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "PACKHORSE_HOME": str(folder / "home")},
    )  # fmt: skip
    return int((folder / "code").read_text()), run.stdout + run.stderr


def reset(folder: Path) -> None:
    subprocess.run(["rm", "-rf", *map(str, folder.glob("new.*"))], check=True)  # noqa: S607


def check(forked: ForkedCLI, name: str, case: Case, states: Streams, modules: list[str]) -> None:
    reset(forked.folder)
    code, said = forked.ended(case.arguments, states, modules)
    is_printed = name in PRINTED and states[1] in ("closed", "full")
    assert code == (2 if is_printed else case.code), said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    if case.code == 2 and states[2] == "open":
        assert "packhorse: " in said or "error: " in said
    if is_printed and states[2] == "open":
        assert "cannot write all of standard output" in said
    if case.writes is not None:
        assert len((forked.folder / case.writes).read_text().splitlines()) >= 2


def test_every_verb_has_a_case() -> None:
    own_tests = {"serve", "load-test"}
    assert {name.split()[0] for name, case in {**QUICK, **SLOW}.items() if case.code == 0} | (
        own_tests
    ) >= set(VERBS)


@pytest.mark.parametrize(
    ("name", "states"),
    [
        (name, states)
        for name, case in QUICK.items()
        for states in (ALL_AT_ONCE if case.code else STATES)
    ],
)
def test_streams_of_quick_verbs(forked: ForkedCLI, name: str, states: Streams) -> None:
    check(forked, name, QUICK[name], states, MODULES)


@pytest.mark.slow
@pytest.mark.parametrize("states", ALL_AT_ONCE, ids="-".join)
@pytest.mark.parametrize("name", SLOW)
def test_streams_of_slow_verbs(with_models: ForkedCLI, name: str, states: Streams) -> None:
    check(with_models, name, SLOW[name], states, MODULES + MODEL_LIBRARIES)


@pytest.mark.parametrize("states", STATES[3:], ids="-".join)
def test_streams_of_a_load_test(forked: ForkedCLI, fake_server: Served, states: Streams) -> None:
    arguments = ["load-test", fake_server.address, "in.jsonl", "--rate", "inf", "--requests", "2"]
    check(forked, "load-test", Case([*arguments, "--max-new-tokens", "4"]), states, ["httpx"])


@pytest.mark.parametrize(
    "redirection", [">/dev/full", "| true", "2>/dev/full", "<&- >&- 2>&-", "2>&1 | true"]
)
def test_streams_of_a_new_process(folder: Path, redirection: str) -> None:
    """As a shell starts it, to show that forked children are no easier."""
    reset(folder)
    words = " ".join(QUICK["run"].arguments)
    code, said = ended(folder, words, redirection)
    assert (code, len((folder / "new.jsonl").read_text().splitlines())) == (0, 2), said
    assert "Traceback" not in said
    assert "Exception ignored" not in said


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


def test_a_stream_continues_once_there_is_space_and_counts_as_incomplete() -> None:
    disk = Flaky()
    stream = GuardedStream(cast(TextIO, disk))
    stream.write("lost")
    disk.is_full = False
    stream.write("kept")
    stream.flush()
    assert disk.getvalue() == "kept"
    assert stream.failure is not None


def test_a_pipe_that_nobody_reads_drops_messages() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", buffering=1) as pipe, os.fdopen(reader, "rb") as read:
        stream = GuardedStream(pipe, wait_seconds=0.05)
        started = time.monotonic()
        for _ in range(100):
            stream.write("x" * 5000 + "\n")
        assert time.monotonic() - started < 5
        assert len(read.read1(1 << 20)) > 4096  # what fit
        stream.write("later\n")
        assert read.read1(1 << 20).endswith(b"later\n")
        assert stream.failure is None


def test_a_pipe_that_is_read_slowly_loses_nothing() -> None:
    reader, writer = os.pipe()
    got = bytearray()

    def read() -> None:
        while chunk := os.read(reader, 1000):
            got.extend(chunk)
            time.sleep(0.0005)

    reading = threading.Thread(target=read)
    reading.start()
    with os.fdopen(writer, "w", buffering=1) as pipe:
        stream = GuardedStream(pipe, wait_seconds=10.0)
        for number in range(20):
            stream.write(f"{number}" * 5000 + "\n")
    reading.join()
    os.close(reader)
    assert got.decode() == "".join(f"{number}" * 5000 + "\n" for number in range(20))


def test_json_is_whole_or_an_error(folder: Path) -> None:
    code, said = ended(folder, "status done.jsonl --json", "")
    assert code == 0
    assert json.loads(said)["completed"] == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_part_of_the_output_counts_as_incomplete(tmp_path: Path, unbuffered: str) -> None:
    """Python's own unbuffered streams ignore that a write took only a part."""
    done = subprocess.run(
        ["/bin/bash", "-c", f"ulimit -f 1; exec {PACKHORSE} --help > out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / "out").stat().st_size == 1024
    assert done.returncode == 2
    assert "cannot write all of standard output: File too large" in done.stderr
