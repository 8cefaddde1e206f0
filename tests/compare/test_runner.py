"""Whole comparisons on the fake engine: planted faults are found, and nothing measured is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from packhorse.compare import runner
from packhorse.compare.config import CompareConfig
from packhorse.compare.document import Trial
from packhorse.compare.report import read_report
from packhorse.compare.trial import finished_repeat, run_repeat
from packhorse.compare.verdict import UserLimits
from packhorse.errors import ConfigError, InputError, OutputError, PackhorseError
from packhorse.techniques.grid import packhorse_command


class Notes:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompareConfig:
    monkeypatch.setenv("PACKHORSE_HOME", str(tmp_path / "home"))
    source = tmp_path / "in.jsonl"
    rows = [
        {"id": i, "prompt": f"row {i} " + "word " * (i * 17 % 60), "label": "the"}
        for i in range(40)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CompareConfig(
        model="fake",
        input=str(source),
        output=tmp_path / "report",
        engines=("fake",),
        quantizations=("float32", "int8", "int16"),
        batchings=("single", "sorted"),
        sample=30,
        repeats=2,
        max_new_tokens=12,
        reference="fake:float32",
        embeddings=None,
    )


@pytest.mark.slow
def test_a_planted_slow_engine_and_a_planted_wrong_engine_are_found(config: CompareConfig) -> None:
    comparison = runner.compare(config, Notes())
    trials = {trial.name: trial for trial in comparison.trials}
    assert all(trial.status == "ok" for trial in trials.values())
    exact, wrong = trials["fake float32 sorted"], trials["fake int8 sorted"]
    assert exact.quality["rows_identical"].mean == 1.0
    assert 0.4 < wrong.quality["rows_identical"].mean < 0.9
    assert wrong.worst_rows
    assert not exact.worst_rows
    slow = trials["fake int16 sorted"]
    assert slow.speed["generate_seconds"].median > 3 * exact.speed["generate_seconds"].median
    assert slow.quality["rows_identical"].mean == 1.0
    effects = {(e.before, e.after): e for e in comparison.effects}
    lossy = effects["fake float32 sorted", "fake int8 sorted"]
    assert lossy.kind == "quantization"
    assert lossy.rows_identical.mean == wrong.quality["rows_identical"].mean
    batching = effects["fake int8 single", "fake int8 sorted"]
    assert batching.kind == "batching"
    assert batching.rows_identical.mean == 1.0
    assert comparison.recommendation.trial.startswith("fake float32")
    for name in ("report.json", "report.csv", "report.md", "report.html"):
        assert (config.output / name).stat().st_size > 0
    assert read_report(config.output / "report.json").to_json() == comparison.to_json()


@pytest.mark.slow
def test_labels_are_judged(config: CompareConfig) -> None:
    chosen = replace(config, labels="label", quantizations=("int8",), repeats=1)
    comparison = runner.compare(chosen, Notes())
    (trial, _) = comparison.trials
    assert 0 <= trial.quality["label_accuracy"].mean <= 1
    notes = trial.quality_notes
    assert (notes["labelled"], notes["trial_failed"], notes["reference_failed"]) == (30, 0, 0)
    assert 0 < (notes["chrf_corpus"] or 0) < 100
    for name in ("length_ratio", "reference_accuracy", "accuracy_difference"):
        low, middle, high = (notes[f"{name}{end}"] for end in ("_low", "", "_high"))
        assert low is not None
        assert middle is not None
        assert high is not None
        assert low <= middle <= high
    assert "nrefs:1" in comparison.reference["chrf_signature"]


@pytest.mark.slow
def test_limits_choose(config: CompareConfig) -> None:
    chosen = replace(config, limits=UserLimits(min_agreement=0.99, max_p95=30.0), repeats=1)
    recommendation = runner.compare(chosen, Notes()).recommendation
    assert "int8" not in recommendation.trial
    assert recommendation.command.startswith("packhorse run fake")


@pytest.mark.slow
def test_one_row(config: CompareConfig) -> None:
    comparison = runner.compare(replace(config, sample=1, repeats=1), Notes())
    assert all(trial.status == "ok" for trial in comparison.trials)
    assert comparison.sample["rows"] == 1


@pytest.mark.slow
def test_a_resumed_comparison_runs_only_what_is_missing(config: CompareConfig) -> None:
    runner.compare(config, Notes())
    lost = config.output / "runs" / "fake-int8-sorted" / "1" / "outcome.json"
    kept = config.output / "runs" / "fake-int8-sorted" / "0" / "outcome.json"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    runner.compare(replace(config, resume=True), Notes())
    assert lost.exists()
    assert kept.stat().st_mtime_ns == before


@pytest.mark.slow
def test_repeats_beside_other_work_are_flagged(config: CompareConfig) -> None:
    runner.compare(config, Notes())
    path = config.output / "runs" / "fake-int8-sorted" / "1" / "outcome.json"
    outcome = json.loads(path.read_text())
    assert 0 <= outcome["repeat"]["figures"]["other_work_share"] <= 1
    outcome["repeat"]["figures"]["other_work_share"] = 0.99
    path.write_text(json.dumps(outcome))
    again = runner.compare(replace(config, resume=True), Notes())
    (flag,) = [
        flag
        for trial in again.trials
        for flag in trial.flags
        if trial.name == "fake int8 sorted" and "other work" in flag
    ]
    assert "up to 99%" in flag


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"sample": 0}, ConfigError, "must have at least 1 row, got 0"),
        ({"repeats": 0}, ConfigError, "repeats"),
        ({"engines": ("vllm",)}, ConfigError, "unknown engine"),
        ({"labels": "absent"}, ConfigError, "no sampled row has a label"),
        (
            {"model": "no-such-model", "reference": "transformers:float32"},
            PackhorseError,
            "no model",
        ),
        ({"reference": "nothing:float32"}, ConfigError, "unknown engine 'nothing'"),
        ({"warmup_rows": -1}, ConfigError, "warmup_rows must be at least 0, got -1"),
        ({"input": "absent.jsonl"}, InputError, "does not exist"),
    ],
)
def test_what_cannot_be_compared(
    config: CompareConfig, change: dict[str, object], error: type[PackhorseError], match: str
) -> None:
    with pytest.raises(error, match=match):
        runner.compare(replace(config, **change), Notes())  # type: ignore[arg-type]


def test_a_wrong_sentence_model_is_noticed_before_anything_runs(
    config: CompareConfig, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"")
    for name, said in [("no-such-model", "no embedding model"), ("other", "modules.json")]:
        named = name if name != "other" else str(tmp_path / name)
        with pytest.raises(PackhorseError, match=said):
            runner.compare(replace(config, embeddings=named), Notes())
    assert not config.output.exists()


@pytest.mark.slow
def test_a_folder_of_another_comparison_is_left_alone(config: CompareConfig) -> None:
    small = replace(config, repeats=1, quantizations=("float32",), batchings=("single",))
    runner.compare(small, Notes())
    before = (config.output / "report.json").read_bytes()
    with pytest.raises(OutputError, match="already contains a comparison"):
        runner.compare(small, Notes())
    with pytest.raises(OutputError, match="another max_new_tokens"):
        runner.compare(replace(small, resume=True, max_new_tokens=5), Notes())
    assert (config.output / "report.json").read_bytes() == before


@pytest.mark.slow
def test_a_trial_that_fails_is_a_row_with_a_reason(
    config: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial kills itself, as the kernel would for want of memory; the others are judged."""

    def command(arguments: list[str]) -> list[str]:
        if "int8" in arguments:
            return [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
        return packhorse_command(arguments)

    monkeypatch.setattr(runner, "packhorse_command", command)
    comparison = runner.compare(replace(config, repeats=1), Notes())
    by_name: dict[str, Trial] = {trial.name: trial for trial in comparison.trials}
    assert by_name["fake int8 single"].status == "failed"
    assert "ran out of memory" in by_name["fake int8 single"].reason
    assert by_name["fake float32 single"].status == "ok"
    assert "int8" not in comparison.recommendation.trial


def test_a_reference_that_fails_says_so_at_once(
    config: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(arguments: list[str]) -> list[str]:
        return [sys.executable, "-c", "import sys; sys.exit('no such luck')"]

    monkeypatch.setattr(runner, "packhorse_command", command)
    with pytest.raises(PackhorseError, match=r"the reference fake float32 single failed.*no such"):
        runner.compare(config, Notes())


@pytest.mark.slow
def test_the_reference_is_run_once_and_kept(config: CompareConfig) -> None:
    small = replace(config, repeats=1, quantizations=("float32",), batchings=("single",))
    runner.compare(small, Notes())
    notes = Notes()
    runner.compare(replace(small, output=config.output.with_name("second")), notes)
    assert any("was found in the cache" in line for line in notes.lines)


@pytest.mark.slow
def test_a_full_disk_at_report_time_keeps_what_was_measured(
    config: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> list[Path]:
        raise OutputError("report.json cannot be written: No space left on device", "free some")

    small = replace(config, repeats=1, quantizations=("float32",), batchings=("single",))
    with monkeypatch.context() as patched:
        patched.setattr(runner, "write_reports", full)
        with pytest.raises(OutputError, match="No space left"):
            runner.compare(small, Notes())
    kept = config.output / "runs" / "fake-float32-single" / "0" / "outcome.json"
    before = kept.stat().st_mtime_ns
    runner.compare(replace(small, resume=True), Notes())
    assert kept.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_killed_comparison_goes_on(config: CompareConfig, tmp_path: Path) -> None:
    arguments = [
        sys.executable, "-m", "packhorse", "compare", "fake", config.input, "-o",
        str(config.output), "--engines", "fake", "--quantizations", "float32,int16", "--batchings",
        "single", "--reference", "fake:float32", "--embeddings", "none", "--repeats", "2",
        "--max-new-tokens", "12", "--sample", "30",
    ]  # fmt: skip
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=os.environ)
    first = config.output / "runs" / "fake-float32-single" / "0" / "outcome.json"
    deadline = time.monotonic() + 60
    while not first.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "--resume" in stderr
    before = first.stat().st_mtime_ns
    again = subprocess.run([*arguments, "--resume"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert first.stat().st_mtime_ns == before
    assert "fake int16" in again.stdout


def test_a_repeat_measures_its_process(tmp_path: Path) -> None:
    """Peak memory is of the process that was run: 200 MB are held for a moment."""
    report = json.dumps({"session": {"peak_memory_bytes": 1}, "resolved": {"compute_type": "none"}})
    code = (
        "import sys, time\n"
        "held = b'x' * 200_000_000\ntime.sleep(0.3)\n"
        "import packhorse, pathlib\n"
        "from packhorse.jobs.journal import Journal\n"
        "folder = pathlib.Path(sys.argv[2] + '.packhorse'); folder.mkdir()\n"
        "Journal(folder / 'journal.sqlite3').close()\n"
        f"print({report!r})\n"
    )
    outcome = run_repeat(tmp_path / "0", 0, [sys.executable, "-c", code])
    assert outcome.repeat is not None, outcome.reason
    assert 200e6 < outcome.repeat.peak_memory_bytes < 400e6
    assert outcome.repeat.processor_seconds > 0
    assert finished_repeat(tmp_path / "0") == outcome


@pytest.mark.slow
def test_nothing_is_calibrated_within_a_trial(config: CompareConfig) -> None:
    """Else the first repeats would run with other workers than the later ones."""
    chosen = replace(config, quantizations=("float32",), batchings=("single", "planned"))
    notes = Notes()
    comparison = runner.compare(chosen, notes)
    assert [line for line in notes.lines if line.startswith("measuring the cost")] == [
        "measuring the cost of fake on fake float32 (once)"
    ]
    (calibration,) = (config.output.parent / "home" / "calibrations").iterdir()
    runs = (config.output / "runs").glob("fake-*/*/outcome.json")
    assert all(calibration.stat().st_mtime_ns < run.stat().st_mtime_ns for run in runs)
    resolved = [
        json.loads(manifest.read_text())["resolved"]
        for manifest in (config.output / "runs").glob("fake-*/*/answers.jsonl.manifest.json")
    ]
    assert len(resolved) == len(comparison.trials) * config.repeats
    assert len({(each["workers"], each["threads"]) for each in resolved}) == 1
