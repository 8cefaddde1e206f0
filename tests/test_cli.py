"""The command line as a user meets it: one line, a hint, an exit code, no traceback."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from packhorse.cli import VERBS, main


def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "packhorse", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        check=False,
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text('{"id": 1, "prompt": "one"}\n{"id": 2, "prompt": "two"}\n')
    return path


FAKE_ENGINE = ("--engine", "fake")
FAKE = (*FAKE_ENGINE, "--max-new-tokens", "5")


def test_json_is_the_last_line_of_stdout(source: Path, tmp_path: Path) -> None:
    done = run("run", "fake", str(source), "-o", str(tmp_path / "o.jsonl"), "--json", *FAKE)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["counts"]["completed"] == 2
    assert report["session"]["latency_seconds"]["p50"] is not None
    assert "2 rows: 2 completed" in done.stderr


def test_failed_rows_have_their_own_exit_code(source: Path, tmp_path: Path) -> None:
    source.write_text('{"prompt": "one"}\nnot json\n')
    done = run("run", "fake", str(source), "-o", str(tmp_path / "o.jsonl"), *FAKE)
    assert done.returncode == 3
    assert "1 x malformed_json" in done.stdout


def test_standard_input_may_be_piped_once_and_continued(tmp_path: Path) -> None:
    arguments = ("run", "fake", "-", "-o", str(tmp_path / "o.csv"), *FAKE)
    first = run(*arguments, stdin="first prompt\nsecond prompt\n")
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "o.csv").read_text().count("\n") == 3
    again = run(*arguments, stdin="")
    assert again.returncode == 0, again.stderr
    assert "nothing was left to run" in again.stdout


def test_empty_standard_input(tmp_path: Path) -> None:
    done = run("run", "fake", "-", "-o", str(tmp_path / "o.csv"), *FAKE, stdin="")
    assert (done.returncode, "standard input is empty" in done.stderr) == (2, True)


LONG = "Tell me more. " * 50
FAKE_ENGINES = ("--engines", "fake")
REFUSALS = [
    (["run", "no-such-model", "{in}", "-o", "{out}"], "no model 'no-such-model'"),
    (["run", "./absent", "{in}", "-o", "{out}"], "there is no model at"),
    (["run", "fake", "absent.jsonl", "-o", "{out}", *FAKE], "absent.jsonl"),
    (["run", "fake", LONG, "-o", "{out}", *FAKE], "there is no file 'Tell me"),
    (["plan", "fake", LONG, *FAKE_ENGINES], "there is no file 'Tell me"),
    (["run", "fake", "{in}", "-o", f"{LONG}.csv", *FAKE], "File name too long"),
    (["plan", *FAKE_ENGINES, "fake", "absent.jsonl"], "there is no file 'absent.jsonl'"),
    (["plan", "fake", "{in}", "--engines", "fake,absent"], "unknown engine 'absent'"),
    (["plan", "fake", "{in}", *FAKE_ENGINES, "--batchings", "x"], "unknown batching policy 'x'"),
    (
        ["run", "fake", "{in}", "-o", "{out}", *FAKE, "--warm-up-rows", "-1"],
        "warmup_rows must be at least 0, got -1",
    ),
    (["status", LONG], "there is no journal"),
    (["compare", "fake", "{in}", *FAKE_ENGINES, "-o", "{in}"], "cannot be made"),
    (["run", "fake", "{in}", "-o", "absent/o.jsonl", *FAKE], "does not exist"),
    (["run", "fake", "{in}", "-o", "{out}.txt", *FAKE], "no known suffix"),
    (["run", "fake", "{in}", "-o", "{in}", *FAKE], "the output is the input"),
    (
        ["run", "fake", "{in}", "-o", "{out}", *FAKE, "--max-new-tokens", "-1"],
        "max_new_tokens must be an integer from 0 to",
    ),
    (
        ["run", "fake", "{in}", "-o", "{out}", *FAKE, "--batch-size", "0"],
        "batch_size must be at least 1, got 0",
    ),
    (
        ["run", "fake", "{in}", "-o", "{out}", *FAKE, "--limit", "0"],
        "limit must be at least 1 row, got 0",
    ),
    (["run", "fake", "{in}", "-o", "{out}", *FAKE, "--template", "{absent.x}"], "not a plain name"),
    (["assess", "fake", "absent.csv", *FAKE_ENGINE], "absent.csv does not exist"),
    (["assess", "fake", "{in}", *FAKE_ENGINE, "--text-column", "promt"], "has no column 'promt'"),
    (["assess", "fake", "{one}", *FAKE_ENGINE], "have the label 'a'"),
    (["assess", "fake", "{in}", *FAKE_ENGINE, "--margin", "0"], "margin is 0.0"),
    (["assess", "fake", "{in}", *FAKE_ENGINE, "--label-name", "a"], "must be LABEL=WORDS, got 'a'"),
    (["classify", "{in}", "{in}", "-o", "{out}"], "holds no saved classifier"),
    (["status", "{out}"], "there is no journal"),
    (["export", "{out}"], "there is no journal"),
    (["prepare", "smollm2-135m-instuct"], "smollm2-135m-instruct"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSALS)
def test_refusals(arguments: list[str], said: str, source: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.csv"
    one.write_text("text,label\nfirst words,a\nother talk,a\n")
    places = {"{in}": str(source), "{out}": str(tmp_path / "o.jsonl"), "{one}": str(one)}
    filled = arguments
    for name, place in places.items():
        filled = [argument.replace(name, place) for argument in filled]
    done = run(*filled)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_status_says_to_type_can_be_typed(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "my answers & more.jsonl"
    run("run", "no-such-model", str(source), "-o", str(output))
    *_, line = run("status", str(output)).stdout.splitlines()
    assert shlex.split(line) == ["packhorse", "export", str(output)]


SMALL_DISK = """
import resource, sys
from packhorse.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
sys.exit(main())
"""


def test_standard_input_that_does_not_fit_on_the_disk(tmp_path: Path) -> None:
    arguments = ["run", "fake", "-", "-o", str(tmp_path / "o.jsonl"), *FAKE]
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, *arguments],
        input="x\n" * 500_000,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "File too large" in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["run"], ["rn"], ["run", "a", "b", "-o", "c", "--batching", "x"]]
)
def test_usage_errors(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: packhorse" in done.stderr


def test_export_of_an_unfinished_run_marks_what_is_pending(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    assert run("run", "fake", str(source), "-o", str(output), *FAKE).returncode == 0
    source.write_text(source.read_text() + '{"id": 3, "prompt": "three"}\n')
    refused = run("run", "fake", str(source), "-o", str(output), *FAKE, "--seed", "1")
    assert refused.returncode == 2
    assert "seed was None, is 1" in refused.stderr
    done = run("export", str(output))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "o.partial.jsonl").read_text().splitlines()]
    assert len(rows) == 2


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: packhorse {verb}" in capsys.readouterr().out


def test_no_verb_shows_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("packhorse 0.")
