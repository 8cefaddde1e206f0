"""Estimates of jobs on the fake engine, whose time is known, and their recommendations."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import tiny_models
from packhorse.batching.cost import OutputLengths
from packhorse.calibration import stored_calibration
from packhorse.calibration.probes import CONTINUOUS_PROBES
from packhorse.calibration.store import calibration_path
from packhorse.calibration.store import write as write_calibration
from packhorse.cli import main
from packhorse.cli.plan import duration
from packhorse.config import BatchingConfig, EngineConfig, InputConfig
from packhorse.data import SamplingParams
from packhorse.errors import ConfigError, InputError, ModelError, PackhorseError
from packhorse.estimate import EstimateConfig, JobEstimate, Prediction, estimate
from packhorse.estimate.job import choose_recommended
from packhorse.estimate.predict import interval, relative_error
from packhorse.estimate.survey import survey
from packhorse.inference.model import prepare_for
from packhorse.models import prepare
from packhorse.techniques.grid import engine_config
from packhorse.tokenization import ByteCodec, Tokenizer

DELAY = "PACKHORSE_FAKE_SECONDS_PER_TOKEN"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKHORSE_HOME", str(tmp_path / "home"))


def write(path: Path, prompts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return path


@pytest.fixture
def config(tmp_path: Path) -> EstimateConfig:
    source = write(tmp_path / "in.jsonl", ["word " * (number % 7 + 1) for number in range(40)])
    return EstimateConfig(
        "anything",
        str(source),
        engines=("fake",),
        decoding=SamplingParams(max_new_tokens=16),
        pilot_seconds=0.2,
    )


def silent(message: str) -> None:
    pass


def prediction(quantization: str, seconds: float) -> Prediction:
    return Prediction("e", quantization, "planned", seconds, seconds / 2, seconds * 2, 1, 1, "")


@pytest.mark.slow
def test_every_technique_is_predicted_fastest_first(config: EstimateConfig) -> None:
    found = estimate(config, silent)
    assert (found.rows, found.unusable_rows) == (40, 0)
    assert len(found.predictions) == 2 * len(set(config.batchings) - {"continuous"})
    totals = [each.load_seconds + each.seconds for each in found.predictions]
    assert totals == sorted(totals)
    assert all(
        each.lowest_seconds < each.seconds < each.highest_seconds for each in found.predictions
    )
    assert found.recommended is not None
    assert found.recommended.quantization == "float32"
    assert 0 < found.new_tokens <= 40 * 16


@pytest.mark.slow
def test_equal_rows_need_not_run(config: EstimateConfig) -> None:
    """40 rows of 7 texts; if sampled without a seed, each has to run."""
    assert estimate(config, silent).equal_rows == 33
    sampled = replace(config, decoding=SamplingParams(max_new_tokens=16, temperature=1.0))
    assert estimate(sampled, silent).equal_rows == 0


@pytest.mark.slow
def test_the_packed_engine_is_predicted_in_both_formats(tmp_path: Path) -> None:
    """Like the command: calibrated in child processes by its own cost rule.

    The run is a child process too, because its memory is measured.
    """
    folder = tiny_models.tiny_llama(tmp_path / "llama")
    source = write(tmp_path / "in.jsonl", [f"row {number} " * 8 for number in range(30)])
    config = EstimateConfig(
        str(folder),
        str(source),
        engines=("packed",),
        decoding=SamplingParams(max_new_tokens=8),
        pilot_seconds=0.1,
    )
    found = estimate(config, silent)
    techniques = {(each.engine, each.quantization, each.batching) for each in found.predictions}
    assert techniques == {("packed", "float32", "continuous"), ("packed", "int8", "continuous")}
    assert found.failed == {}
    for quantization in ("float32", "int8"):
        prepared = prepare_for(str(folder), engine_config("packed", quantization))
        kept = stored_calibration(prepared, engine_config("packed", quantization))
        assert kept is not None
        assert kept.capabilities.cost_rule == "packed"
        assert kept.observations == len(CONTINUOUS_PROBES)
        assert kept.coefficients.prefill_tokens + kept.coefficients.batches > 0
    command = [
        sys.executable, "-m", "packhorse", "run", str(folder), str(source), "-o",
        str(tmp_path / "out.jsonl"), "--engine", "packed", "--quantization", "int8",
        "--max-new-tokens", "8",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    session, resolved = manifest["session"], manifest["resolved"]
    assert session["expected"]["generate_seconds"] > 0
    assert session["expected"]["peak_memory_bytes"] > 0.9 * session["peak_memory_bytes"]
    assert resolved["peak_bytes"] > resolved["model_bytes"]
    assert "weights, cache and steps take at most" in ran.stderr


def test_a_step_that_waits_is_predicted(
    config: EstimateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 single rows, 16 steps of 5 ms each: 3.2 s of waiting on any machine."""
    monkeypatch.setenv(DELAY, "0.005")
    only = replace(
        config,
        quantizations=("float32",),
        batchings=("single",),
        batching=BatchingConfig(deduplicate=False),
        pilot_seconds=1.0,
    )
    # With two workers the pilot leaves one idle, and the prediction is too low.
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        (found,) = estimate(only, silent).predictions
    finally:
        os.sched_setaffinity(0, cores)
    assert 2.5 < found.seconds < 10


def test_costs_measured_beside_other_work_are_named(config: EstimateConfig) -> None:
    only = replace(config, quantizations=("float32",))
    messages: list[str] = []
    estimate(only, messages.append)
    engine = engine_config("fake", "float32")
    prepared = prepare_for("anything", engine)
    kept = stored_calibration(prepared, engine)
    assert kept is not None
    for share, expected in ((0.05, 0), (0.4, 1)):
        write_calibration(calibration_path(prepared, engine), replace(kept, other_work_share=share))
        messages.clear()
        estimate(only, messages.append)
        warnings = [message for message in messages if "other work" in message]
        assert len(warnings) == expected
    (warning,) = warnings
    assert "40%" in warning
    command = warning.split("packhorse ")[1]
    assert main(shlex.split(command)) == 0


def test_a_broken_technique_costs_no_other(config: EstimateConfig) -> None:
    both = replace(config, engines=("fake", "transformers"), quantizations=("float32",))
    found = estimate(both, silent)
    assert list(found.failed) == ["transformers float32"]
    assert {each.engine for each in found.predictions} == {"fake"}


@pytest.mark.parametrize(
    ("max_hours", "chosen"), [(None, "float32"), (1.0, "float32"), (0.03, "int8"), (0.001, None)]
)
def test_recommended(max_hours: float | None, chosen: str | None) -> None:
    """int8 takes at most 41 s, float32 at most 201 s."""
    found = choose_recommended([prediction("int8", 20), prediction("float32", 100)], max_hours)
    assert (found.quantization if found else None) == chosen


def test_a_large_file_is_surveyed_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packhorse.estimate.survey.SURVEYED_ROWS", 1000)
    source = write(tmp_path / "in.jsonl", ["four"] * 5000)
    with source.open("a") as file:
        file.write("rubbish\n")
    tokenizer = Tokenizer(ByteCodec(), None, "error")
    found = survey(source, InputConfig(), tokenizer, SamplingParams(max_new_tokens=5), 100)
    assert (found.rows, len(found.prompts)) == (5000, 1024)
    assert found.prompt_tokens == 5000 * len(found.prompts[0].token_ids)


def test_rows_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", ["x" * 200, "fits"])
    tokenizer = Tokenizer(ByteCodec(), None, "error")
    found = survey(source, InputConfig(), tokenizer, SamplingParams(max_new_tokens=5), 100)
    assert (found.rows, found.unusable) == (1, 1)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"max_hours": 0.0}, ConfigError, "max_hours must be above 0, got 0.0"),
        ({"input": "-"}, InputError, "standard input"),
        ({"input": "nowhere.jsonl"}, InputError, "no file 'nowhere.jsonl'"),
        ({"decoding": SamplingParams(max_new_tokens=-1)}, ConfigError, "max_new_tokens"),
        ({"engines": ("tranformers",)}, ConfigError, "unknown engine"),
    ],
)
def test_what_cannot_be_planned(
    config: EstimateConfig, change: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        estimate(replace(config, **change), silent)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "reading", "said"),
    [
        ("empty.jsonl", "", InputConfig(), "is empty"),
        ("in.docx", "x", InputConfig(), "docx"),
        ("in.csv", "text\nRome\n", InputConfig("question"), "no column 'question'"),
        ("in.csv", "text\nRome\n", InputConfig(template="{tex}"), "no column 'tex'"),
        ("in.csv", "text\nRome\n", InputConfig(template="{text"), "template"),
        ("n" * 300 + ".csv", None, InputConfig("text"), "there is no file"),
    ],
)
def test_an_input_that_cannot_be_read_costs_no_measuring(
    config: EstimateConfig,
    tmp_path: Path,
    name: str,
    content: str | None,
    reading: InputConfig,
    said: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    messages: list[str] = []
    with pytest.raises(PackhorseError, match=f"(?i){said}"):
        estimate(replace(config, input=str(tmp_path / name), reading=reading), messages.append)
    assert messages == []
    assert not (tmp_path / "home" / "calibrations").exists()


def test_a_folder_of_files_is_one_input(config: EstimateConfig, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    with pytest.raises(InputError, match="has no file of rows"):
        estimate(replace(config, input=str(folder)), silent)
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_bytes(Path(config.input).read_bytes().replace(b'"id"', b'"other"'))
    one = estimate(replace(config, quantizations=("float32",)), silent)
    both = estimate(replace(config, quantizations=("float32",), input=str(folder)), silent)
    assert both.rows == 2 * one.rows


def test_the_command_is_the_job_that_was_planned(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("question\n" + "".join(f"what is {n}\n" for n in range(9)))
    reading = InputConfig("question", system="Be brief.", limit=5)
    decoding = SamplingParams(max_new_tokens=4, stop=("x y",))
    config = EstimateConfig(
        "anything", str(source), ("fake",), ("float32",), ("planned",),
        decoding=decoding, reading=reading, pilot_seconds=0.1,
    )  # fmt: skip
    (found,) = estimate(config, silent).predictions
    output = tmp_path / "out.jsonl"
    words = [
        str(output) if word == "answers.jsonl" else word for word in shlex.split(found.command)
    ]
    assert main(words[1:]) == 0
    assert len(output.read_text().splitlines()) == 5
    manifest = (tmp_path / "out.jsonl.manifest.json").read_text()
    assert "Be brief." in manifest
    assert "x y" in manifest


def test_a_model_of_bin_weights_can_be_planned(
    config: EstimateConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "anything", config.input, "--engines", "fake", "--allow-pickle", "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["recommended"]["command"].endswith("--allow-pickle")


def test_errors_are_independent_parts() -> None:
    """Two rows of 10 and 30 tokens: mean 20, standard error 10, which is half of it."""
    from packhorse.calibration import calibrate

    found = calibrate(prepare("anything", engine="fake"), EngineConfig("fake"), silent)
    outputs = OutputLengths()
    outputs.observe(9, reached_limit=False)
    outputs.observe(30, reached_limit=True)
    exact = replace(found, error=0.0)
    assert relative_error(exact, outputs, 30) == pytest.approx((0.5**2 + 0.1**2) ** 0.5)
    assert relative_error(exact, OutputLengths(), 30) > 0.5


def test_interval_is_symmetric_in_proportion() -> None:
    lowest, highest = interval(100, 0.1)
    assert lowest * highest == pytest.approx(100**2)
    assert highest == pytest.approx(117.9, abs=0.1)


@pytest.mark.parametrize(
    ("seconds", "text"), [(48.23, "48.2 s"), (750, "12.5 min"), (11_000, "3.1 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_command(config: EstimateConfig, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "anything", config.input, "--engines", "fake", "--max-new-tokens", "16"]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "40 rows" in table
    assert "packhorse run anything" in table.splitlines()[-1]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == 40
    assert document["recommended"]["command"].startswith("packhorse run anything")


def test_command_refuses_what_takes_too_long(
    config: EstimateConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "anything", config.input, "--engines", "fake", "--max-hours", "1e-9"]
    assert main(arguments) == 2
    assert "no technique finishes within" in capsys.readouterr().err


def test_calibrate_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "anything", "--engine", "fake"]) == 0
    assert "<- chosen" in capsys.readouterr().out
    assert main(["calibrate", "anything", "--engine", "fake", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["capabilities"]["name"] == "fake"


def test_document_is_json(config: EstimateConfig) -> None:
    found: JobEstimate = estimate(config, silent)
    assert json.loads(json.dumps(found.to_json()))["model"] == "anything"


def test_nothing_can_be_calibrated(config: EstimateConfig) -> None:
    alone = replace(config, engines=("transformers",), quantizations=("float32",))
    with pytest.raises(ModelError, match="anything"):
        estimate(alone, silent)
