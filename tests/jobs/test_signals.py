"""kill -9, Ctrl-C and SIGTERM against real processes: the result equals that of a quiet run."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import tiny_models
from packhorse.errors import Interrupted
from packhorse.jobs.journal import Journal
from packhorse.jobs.signals import SignalGuard

KILLS = 25
KILLS_OF_THE_REAL_MODEL = 2


def command(model: str, source: Path, output: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "packhorse",
        "run",
        model,
        str(source),
        "-o",
        str(output),
        *options,
    ]


def environment(seconds_per_token: float = 0.0) -> dict[str, str]:
    return {**os.environ, "PACKHORSE_FAKE_SECONDS_PER_TOKEN": str(seconds_per_token)}


def prepared_models(home: Path) -> list[str]:
    """Models in a cache folder, whole or half made: what is no lock, tokenizer or config."""
    names = (path.name for path in home.glob("*"))
    return [name for name in names if name not in {".locks", "tokenizers", "configs"}]


def finish(
    arguments: list[str], seconds_per_token: float = 0.0
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, check=False, env=environment(seconds_per_token)
    )


def start(arguments: list[str], seconds_per_token: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(seconds_per_token),
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "in.jsonl"
    rows = [{"id": i, "prompt": f"{i} " + "word " * (i * 13 % 50)} for i in range(120)]
    rows[17]["prompt"] = ""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


FAKE = ("--engine", "fake", "--max-new-tokens", "6", "--batch-size", "4", "--batching", "sorted")
SECONDS_PER_TOKEN = 0.0005
ONE_AT_A_TIME = ("--workers", "1")
"""Else measured costs may choose two, and the fake engine computes a token of each in turn."""


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    output = tmp_path_factory.mktemp("clean") / "out.jsonl"
    started = time.monotonic()
    done = finish(command("fake", source, output, *FAKE), SECONDS_PER_TOKEN)
    assert done.returncode == 3, done.stderr
    return output.read_bytes(), time.monotonic() - started


@pytest.mark.slow
def test_kill_at_random_moments(
    source: Path, undisturbed: tuple[bytes, float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    moments = random.Random(4)

    def killed_once(number: int) -> str:
        output = tmp_path / f"out{number}.jsonl"
        arguments = command("fake", source, output, *FAKE)
        process = start(arguments, SECONDS_PER_TOKEN)
        time.sleep(moments.uniform(0.0, 1.1) * seconds)
        process.kill()
        process.communicate()
        again = finish(arguments)
        if again.returncode != 3:
            return f"{number}: {again.stderr}"
        return "" if output.read_bytes() == expected else f"{number}: other bytes"

    with ThreadPoolExecutor(2) as pool:
        assert not [failure for failure in pool.map(killed_once, range(KILLS)) if failure]


@pytest.mark.slow
def test_one_job_killed_again_and_again(
    source: Path, undisturbed: tuple[bytes, float], tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    arguments = command("fake", source, output, *FAKE)
    for _ in range(4):
        process = start(arguments, SECONDS_PER_TOKEN)
        time.sleep(0.6 * undisturbed[1])
        process.kill()
        process.communicate()
    assert finish(arguments).returncode == 3
    assert output.read_bytes() == undisturbed[0]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_says_how_to_go_on(
    source: Path, undisturbed: tuple[bytes, float], tmp_path: Path, number: int, code: int
) -> None:
    output = tmp_path / "out.jsonl"
    arguments = command("fake", source, output, *FAKE)
    process = start(arguments, 0.02)
    wait_for(output, has_rows)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert "run the same command again" in stderr
    assert "Traceback" not in stderr
    assert not output.exists()
    status = finish([sys.executable, "-m", "packhorse", "status", str(output), "--json"])
    counts = json.loads(status.stdout)
    assert 0 < counts["completed"] < 119
    assert counts["pending"] == 120 - counts["completed"] - counts["failed"]
    assert finish(arguments).returncode == 3
    assert output.read_bytes() == undisturbed[0]


def started_ignoring_sigint(arguments: list[str]) -> subprocess.Popen[str]:
    """A process whose parent ignores SIGINT, as shells start background jobs."""
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(0.02),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )


@pytest.mark.slow
def test_a_run_whose_parent_ignores_sigint_is_interrupted_and_continued(
    source: Path, undisturbed: tuple[bytes, float], tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    arguments = command("fake", source, output, *FAKE)
    process = started_ignoring_sigint(arguments)
    wait_for(output, has_rows)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again" in stderr
    assert finish(arguments).returncode == 3
    assert output.read_bytes() == undisturbed[0]


@pytest.mark.slow
def test_a_comparison_whose_parent_ignores_sigint_is_interrupted_and_continued(
    source: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    arguments = [
        sys.executable, "-m", "packhorse", "compare", "fake", str(source), "-o", str(report),
        "--engines", "fake", "--quantizations", "float32", "--batchings", "single",
        "--reference", "fake:float32", "--embeddings", "none", "--repeats", "2",
        "--max-new-tokens", "4", "--sample", "9",
    ]  # fmt: skip
    process = started_ignoring_sigint(arguments)
    first = report / "runs" / "fake-float32-single" / "0" / "outcome.json"
    deadline = time.monotonic() + 60
    while not first.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "--resume" in stderr
    before = first.stat().st_mtime_ns
    again = finish([*arguments, "--resume"])
    assert again.returncode == 0, again.stderr
    assert first.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_second_signal_stops_at_once(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    process = start(
        command("fake", source, output, *FAKE, *ONE_AT_A_TIME, "--batch-size", "60"), 1.0
    )
    wait_for(output, has_rows)
    time.sleep(1)  # the second batch is under way now, and takes six seconds
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130, stderr
    assert time.monotonic() - asked < 2


@pytest.mark.slow
def test_what_a_batch_answered_survives_a_kill_in_a_long_next_one(tmp_path: Path) -> None:
    """All rows of a batch may end in one burst, and the next result be minutes away."""
    source = tmp_path / "in.jsonl"
    prompts = [f"{i} " + ("stuck" if i == 9 else "quick") for i in range(12)]
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    output = tmp_path / "out.jsonl"
    options = ("--engine", "fake", "--max-new-tokens", "4", "--batching", "fixed")
    arguments = command("fake", source, output, *options, *ONE_AT_A_TIME, "--batch-size", "8")
    with subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**environment(), "PACKHORSE_FAKE_HANG_ON": "stuck"},
    ) as process:
        try:
            wait_for(output, lambda journal: journal.counts().completed > 0)
            time.sleep(1.5)
            assert process.poll() is None
        finally:
            process.kill()
    with Journal(output.with_name("out.jsonl.packhorse") / "journal.sqlite3") as journal:
        found = [record.text is not None for record in journal.records()]
    assert found == [True] * 8 + [False] * 4
    assert finish(arguments).returncode == 0
    assert len(output.read_text().splitlines()) == 12


@pytest.mark.slow
def test_a_second_run_is_refused_while_the_first_works(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    arguments = command("fake", source, output, *FAKE)
    process = start(arguments, 0.1)
    wait_for(output, lambda journal: journal.meta("settings") is not None)
    second = finish(arguments)
    process.kill()
    process.communicate()
    assert second.returncode == 2
    assert "another run" in second.stderr
    assert finish(arguments).returncode == 3


@pytest.fixture
def silent_index() -> Iterator[str]:
    """The URL of a package index that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


@pytest.mark.slow
@pytest.mark.real_model
def test_ctrl_c_while_pip_fetches(
    source: Path, silent_index: str, home: Path, tmp_path: Path
) -> None:
    """A terminal's Ctrl-C reaches pip too."""
    output = tmp_path / "out.jsonl"
    environment = {**os.environ, "PIP_INDEX_URL": silent_index, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        command("smollm2-135m-instruct", source, output),
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    wait_until(lambda: psutil.Process(process.pid).children(recursive=True))
    time.sleep(1)  # pip waits for the index
    asked = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130, stderr
    assert time.monotonic() - asked < 3
    assert "run the same command again" in stderr
    assert "pip could not" not in stderr
    assert not prepared_models(home)
    assert not list(tmp_path.glob("pip-*"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_model_is_made_ready(
    home: Path, tmp_path: Path, number: int, code: int
) -> None:
    folder = tiny_models.tiny_llama(tmp_path / "model", layers=6)
    (tmp_path / "in.txt").write_text("The packhorse carries\n")
    options = ("--engine", "ctranslate2", "--quantization", "int8", "--max-new-tokens", "2")
    output = tmp_path / "out.jsonl"
    arguments = command(str(folder), tmp_path / "in.txt", output, *options)
    process = start(arguments, 0.0)
    assert process.stderr is not None
    for line in process.stderr:
        if "rounding weights" in line:
            break
    asked = time.monotonic()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr
    assert time.monotonic() - asked < 3
    assert "run the same command again" in stderr
    assert "Traceback" not in stderr
    assert not prepared_models(home)
    status = finish([sys.executable, "-m", "packhorse", "status", str(output), "--json"])
    assert json.loads(status.stdout)["pending"] == 1
    assert finish(arguments).returncode == 0
    assert json.loads(output.read_text())["finish_reason"] == "length"


def wait_for_the_signal() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def fail_because_of_it() -> None:
    try:
        wait_for_the_signal()
    except KeyboardInterrupt:
        raise ValueError("cannot be read") from None


def swallow_it() -> None:
    with suppress(KeyboardInterrupt):
        wait_for_the_signal()


def prepare_and_run(preparing: Callable[[], None]) -> None:
    with SignalGuard(no_word) as interruption:
        with interruption.raising():
            preparing()
        raise AssertionError("it went on")


@pytest.mark.parametrize("library", [wait_for_the_signal, fail_because_of_it, swallow_it])
def test_a_signal_where_nothing_is_recorded_raises(library: Callable[[], None]) -> None:
    """Whatever a library makes of it on the way."""
    with pytest.raises(Interrupted, match="signal 15"):
        prepare_and_run(library)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_elsewhere_only_asks() -> None:
    asked: list[bool] = []
    with SignalGuard(lambda: asked.append(True)) as interruption:
        with interruption.raising():
            pass
        os.kill(os.getpid(), signal.SIGINT)
        assert asked == [True]
        assert interruption.requested()
        with pytest.raises(Interrupted), interruption.raising():
            raise AssertionError("long work began after a signal")
        rows = interruption.checked(range(3))
        with pytest.raises(Interrupted):
            next(rows)


def no_word() -> None:
    raise AssertionError("nothing is in flight that would be finished first")


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_real_model_killed_and_continued(demo_model_folder: Path, tmp_path: Path) -> None:
    rows = [{"id": i, "prompt": f"Count from {i} to ten." + " Please." * i} for i in range(10)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--batching", "sorted", "--batch-size", "2", "--max-new-tokens", "12")
    model = str(demo_model_folder)
    clean = tmp_path / "clean.jsonl"
    started = time.monotonic()
    done = finish(command(model, source, clean, *options))
    assert done.returncode == 0, done.stderr
    seconds = time.monotonic() - started
    moments = random.Random(5)
    for number in range(KILLS_OF_THE_REAL_MODEL):
        output = tmp_path / f"out{number}.jsonl"
        process = start(command(model, source, output, *options), 0.0)
        time.sleep(moments.uniform(0.5, 1.0) * seconds)
        process.kill()
        process.communicate()
        assert finish(command(model, source, output, *options)).returncode == 0
        assert output.read_bytes() == clean.read_bytes()


def has_rows(journal: Journal) -> bool:
    """Whether results are in it: they are committed twice a second."""
    return journal.counts().completed > 0


def wait_for(output: Path, condition: Callable[[Journal], bool], seconds: float = 30) -> None:
    """Until the journal of a run exists and the condition holds of it."""
    path = output.with_name(output.name + ".packhorse") / "journal.sqlite3"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.02)
        if path.exists():
            with Journal(path, read_only=True) as journal:
                if condition(journal):
                    return
    raise AssertionError("the run did not come so far")
