"""`packhorse quantize`, from prompts to the measured gain."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

import packhorse
import tiny_models
from packhorse import EngineConfig, JobConfig
from packhorse.cli import main
from packhorse.data import SamplingParams
from packhorse.errors import ModelError, OutputError, PackhorseError
from packhorse.models import prepare
from packhorse.quantization.prompts import shipped_requests, tokenize_prompts
from packhorse.quantize import QuantizeConfig, quantize
from packhorse.tokenization import ByteCodec

Tiny = Callable[[str], Path]


def test_the_shipped_prompts_are_many_and_mixed() -> None:
    requests = shipped_requests()
    assert len({str(request.content) for request in requests}) == 96
    rows = tokenize_prompts(ByteCodec(), requests)
    assert len(rows) == 96
    assert max(map(len, rows)) <= 512
    roles = [{message["role"] for message in request.content} for request in requests]  # type: ignore[index]
    for part in (requests[:24], requests[72:]):
        texts = "".join(str(request.content) for request in part)
        assert any(ord(character) > 0x3000 for character in texts), "no language of Asia"
        assert "```" in texts or "def " in texts or "function" in texts, "no code"
    assert sum("system" in row for row in roles) >= 8
    assert sum("assistant" in row for row in roles) >= 4


@pytest.mark.slow
def test_what_is_found_is_kept_and_used(tiny: Tiny, home: Path, tmp_path: Path) -> None:
    folder, lines = str(tiny_models.with_outlier(tiny("llama"))), list[str]()
    output = tmp_path / "copy"
    report = quantize(
        QuantizeConfig(folder, rows=24, max_new_tokens=12, output=output), lines.append
    )
    assert (report.rows, report.held_out) == (24, 8)
    assert set(report.simulated) == {"plain", "smooth", "rotate", "rotate-smooth"}
    assert report.method == min(report.simulated, key=report.simulated.__getitem__)
    assert report.chosen.method == report.method
    assert report.chosen.forced.kl_divergence.value < 0.7 * report.plain.forced.kl_divergence.value
    for simulated, accuracy in (("plain", report.plain), (report.method, report.chosen)):
        assert accuracy.quality.judged == 8
        measured = accuracy.forced.kl_divergence.value
        assert measured == pytest.approx(report.simulated[simulated], rel=0.4)
    steps = dict.fromkeys(line.partition(": ")[2].partition(",")[0] for line in lines)
    assert list(steps) == [
        "answering", "smooth", "rotate", "rotate-smooth", "converting", "measuring",
    ]  # fmt: skip
    used = prepare(folder, engine="ctranslate2", quantization="int8")
    assert used.quantization_method == report.method
    copied = prepare(str(output))
    assert (copied.engine, copied.quantization_method) == ("ctranslate2", report.method)
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.slow
def test_a_run_says_which_method_ran(tiny: Tiny, home: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("The packhorse carries\nWho wrote this?\n")
    folder, said = str(tiny("llama")), dict[str, Any]()
    for method in ("auto", "plain"):
        report = packhorse.run(
            JobConfig(
                model=folder,
                input=str(tmp_path / "in.txt"),
                output=tmp_path / f"{method}.jsonl",
                engine=EngineConfig("ctranslate2", quantization="int8", quantization_method=method),
                batching=packhorse.BatchingConfig("single"),
                decoding=SamplingParams(max_new_tokens=4),
            )
        )
        assert report.resolved is not None
        said[method] = report.resolved["quantization_method"]
        assert report.model["quantization_method"] == said[method]
    assert said == {"auto": "rotate-smooth", "plain": "plain"}


@pytest.mark.slow
def test_calibration_rows_of_ones_own(tiny: Tiny, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("question\n" + "".join(f"What is {n} times {n}?\n" for n in range(20)))
    options = ["--calibration", str(file), "--template", "Answer: {question}", "--rows", "15"]
    report = tmp_path / "report.json"
    folder = str(tiny_models.with_outlier(tiny("llama")))
    command = ["quantize", folder, *options, "--method", "smooth", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda text, **_: report.write_text(str(text)))
        assert main(command) == 0
    document = json.loads(report.read_text())
    assert (document["rows"], document["held_out"]) == (15, 5)
    assert set(document["simulated"]) == {"plain", "smooth"}
    assert document["chosen"]["judged"] == 5
    kept = json.loads(Path(document["recipe"]).read_text())["recipe"]
    assert len(kept["rows"]) == 10


@pytest.mark.slow
def test_the_summary_shows_both(tiny: Tiny, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(tiny("gpt2")), "--rows", "12"]) == 0
    shown = capsys.readouterr()
    assert "answering" in shown.err
    for part in ("searched", "plain int8", "KL divergence", "matched prefix", "of 4", "recipe"):
        assert part in shown.out


@pytest.mark.slow
def test_back_to_plain(tiny: Tiny, home: Path) -> None:
    folder = str(tiny("llama"))
    report = quantize(QuantizeConfig(folder, method="plain", rows=9, max_new_tokens=4))
    assert report.method == "plain"
    assert report.chosen == report.plain
    assert prepare(folder, engine="ctranslate2", quantization="int8").quantization_method == "plain"


def test_a_family_that_cannot_be_folded(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tiny_models.tiny_gptj(tmp_path / "gptj"))
    assert main(["quantize", folder, "--rows", "9"]) == 0
    shown = capsys.readouterr()
    assert "gptj models cannot be prepared for int8: only plain int8 is available" in shown.err
    assert shown.out.startswith(f"{folder} in int8: plain\n  measured on 3 held-out rows")
    assert main(["quantize", folder, "--rows", "9", "--method", "rotate"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "float32"}, "float32 needs no search"),
        ({"quantization": "int16"}, "int16 needs no search"),
        ({"rows": 8}, "rows must be at least 9, got 8"),
        ({"max_new_tokens": 0}, "max_new_tokens must be .*, got 0"),
        ({"max_new_tokens": 256}, "must be less than the model's context of 256 tokens, got 256"),
        ({"output": Path()}, "exists already"),
        ({"output": Path("/dev/null/model")}, "cannot be created in /dev/null"),
        ({"method": "awq"}, "no quantization method 'awq'"),
        ({"calibration": Path("absent.jsonl")}, "absent.jsonl does not exist"),
    ],
)
def test_what_cannot_be_done(tiny: Tiny, home: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PackhorseError, match=message):
        quantize(QuantizeConfig(str(tiny("llama")), **options))
    assert not list(home.glob("recipes/*"))


@pytest.mark.slow
def test_an_output_that_cannot_be_written_costs_no_search(
    tiny: Tiny, home: Path, tmp_path: Path
) -> None:
    """The disk is full when everything else is done: there is no half folder, and the next attempt
    is not told that the folder is there already."""
    output = tmp_path / "out" / "model"
    config = QuantizeConfig(
        str(tiny("llama")), method="rotate", rows=9, max_new_tokens=4, output=output
    )
    copied = shutil.copyfileobj

    def full_disk(source: IO[bytes], target: IO[bytes], length: int = 0) -> None:
        if Path(target.name).name == "model.bin" and output.parent in Path(target.name).parents:
            target.write(b"some")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target.name)
        copied(source, target, length)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full_disk)
        with pytest.raises(OutputError, match="model cannot be written: No space left") as caught:
            quantize(config)
    assert caught.value.hint.startswith(f"the recipe is stored; copy {home}")
    assert list(output.parent.iterdir()) == []
    assert quantize(config).folder == output
    assert prepare(str(output)).engine == "ctranslate2"


def test_without_memory_for_the_search_nothing_is_kept(
    tiny: Tiny, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored plain recipe would be used from then on without having been compared."""
    monkeypatch.setattr("packhorse.models.int8_preparation.available_bytes", lambda: 1_000_000)
    with pytest.raises(
        ModelError, match=r"the search takes 1\.0 GB of memory, and 0\.0 GB are free"
    ):
        quantize(QuantizeConfig(str(tiny("llama")), rows=9))
    assert not list(home.glob("recipes/*"))


def test_too_few_rows_of_ones_own(tiny: Tiny, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "few.jsonl"
    file.write_text('{"prompt": "one"}\n{"broken\n' + '{"prompt": ""}\n' * 20)
    with pytest.raises(PackhorseError, match="at least 9 prompts are needed, got 1 usable"):
        quantize(QuantizeConfig(str(tiny("llama")), calibration=file))
