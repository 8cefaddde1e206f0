"""The engine that "auto" stands for: which one, why, and that its answers are those by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import transformers

import packhorse
from decoder_models import build
from packhorse.batching.policies import CONTINUOUS
from packhorse.config import BatchingConfig, EngineConfig, InputConfig
from packhorse.errors import ConfigError, JobChangedError, ModelError
from packhorse.jobs.journal import Journal
from packhorse.jobs.workspace import Workspace
from packhorse.models import prepare
from packhorse.models.engine_support import EngineRequest, choose_engine
from random_models import SIZES
from tiny_models import tiny_gguf
from transformers_families import FAMILIES

Tiny = Callable[[str], Path]
PROMPTS = ["the packhorse carries", "what is the largest planet", "small loads over the hills"]
REFUSED = "does not run models of family"


def config_of(family: str, **more: Any) -> Any:
    return transformers.AutoConfig.for_model(family, **{**SIZES, **more})


def answers(folder: Path, engine: str = "auto", **options: Any) -> tuple[str, list[Any]]:
    """The engine that ran, and the texts of PROMPTS."""
    batching = BatchingConfig(**options.pop("batching", {}))
    with packhorse.load(
        str(folder), engine=EngineConfig(engine, **options), batching=batching
    ) as model:
        found = sorted(model.generate(PROMPTS, max_new_tokens=12), key=lambda each: each.index)
        return model.capabilities.name, [getattr(each, "text", each) for each in found]


@pytest.mark.parametrize(
    ("config", "request_", "engine", "reason"),
    [
        (config_of("llama"), EngineRequest(), "packed",
         "fastest without accuracy loss for llama on this CPU"),
        (config_of("llama"), EngineRequest(quantization="int8"), "packed",
         "fastest in int8 for llama on this CPU"),
        (config_of("llama"), EngineRequest(quantization="int8_float32"), "ctranslate2",
         "packed does not run int8_float32"),
        (config_of("llama"), EngineRequest(quantization="float16"), "transformers",
         "packed does not run float16; ctranslate2 does not run float16 on this cpu"),
        (config_of("llama"), EngineRequest(policy="sorted"), "ctranslate2",
         "packed does not batch rows by sorted"),
        (config_of("llama"), EngineRequest(policy=CONTINUOUS), "packed", "fastest"),
        (config_of("llama"), EngineRequest(workers=2), "ctranslate2",
         "packed does not run 2 workers"),
        (config_of("llama"), EngineRequest(workers=1), "packed", "fastest"),
        (config_of("llama"), EngineRequest("cuda"), "transformers", "default on a GPU"),
        (config_of("llama"), EngineRequest("cuda", policy="sorted"), "transformers", "default"),
        (config_of("bloom"), EngineRequest(), "ctranslate2",
         f"packed {REFUSED} 'bloom'"),
        (config_of("olmo"), EngineRequest(), "transformers",
         f"packed {REFUSED} 'olmo'; ctranslate2 does not run olmo models"),
        (config_of("llama"), EngineRequest(forces_tokens=True), "packed", "fastest"),
        (config_of("bloom"), EngineRequest(forces_tokens=True), "transformers",
         "ctranslate2 cannot limit the tokens of reasoning"),
        (None, EngineRequest(), "transformers", "cannot read the config"),
    ],
)  # fmt: skip
def test_the_choice(config: Any, request_: EngineRequest, engine: str, reason: str) -> None:
    chosen = choose_engine(config, request_)
    assert chosen.name == engine
    assert reason in chosen.reason


@pytest.mark.parametrize(
    "request_",
    [
        EngineRequest(quantization="int8"),
        EngineRequest(policy=CONTINUOUS),
        EngineRequest(workers=2),
    ],
)
def test_options_that_no_engine_runs(request_: EngineRequest) -> None:
    with pytest.raises(ConfigError, match=r"no engine runs this olmo model .*packed does not"):
        choose_engine(config_of("olmo"), request_)


@pytest.mark.parametrize(
    ("family", "engine"),
    [("llama", "packed"), ("gpt2", "packed"), ("bloom", "ctranslate2"), ("olmo", "transformers")],
)
def test_a_model_runs_on_the_fastest_engine_with_the_same_text(
    family: str, engine: str, tmp_path: Path, home: Path
) -> None:
    build(FAMILIES[family], tmp_path)
    chosen, texts = answers(tmp_path)
    assert chosen == engine
    assert (chosen, texts) == answers(tmp_path, engine)
    assert texts == answers(tmp_path, "transformers")[1]


def test_a_batching_policy_chooses_an_engine_that_takes_it(
    tiny: Tiny, home: Path, messages: list[str]
) -> None:
    folder = tiny("llama")
    chosen, texts = answers(folder, batching={"policy": "sorted"})
    assert chosen == "ctranslate2"
    assert texts == answers(folder)[1]


def test_a_conversion_that_fails_its_check(
    tmp_path: Path, home: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ModelError("other logits", "none")

    build(FAMILIES["bloom"], tmp_path)
    monkeypatch.setattr("packhorse.models.ct2_check.require_same_logits", refuse)
    prepared = prepare(str(tmp_path), report=messages.append)
    assert prepared.engine == "transformers"
    assert messages[-1].startswith(f"engine transformers: packed {REFUSED} 'bloom'; ctranslate2 ")
    assert "computes other logits" in messages[-1]
    assert not list(home.glob("*-float32-*"))
    with pytest.raises(ModelError, match="computes other logits"):  # no other engine has int8
        prepare(str(tmp_path), quantization="int8")
    with pytest.raises(ModelError, match="computes other logits"):
        prepare(str(tmp_path), engine="ctranslate2")


def test_a_conversion_that_memory_may_not_hold(
    tmp_path: Path, home: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(FAMILIES["bloom"], tmp_path)
    module = import_module("packhorse.models.prepare")  # its package has a function of this name
    monkeypatch.setattr(module, "available_bytes", lambda: 1000)
    assert prepare(str(tmp_path), report=messages.append).engine == "transformers"
    assert "its conversion takes 0.0 GB of memory" in messages[-1]
    assert prepare(str(tmp_path), engine="ctranslate2").engine == "ctranslate2"
    assert prepare(str(tmp_path)).engine == "ctranslate2"  # there is one already


def test_forms_of_a_model(tiny: Tiny, home: Path, tmp_path: Path, messages: list[str]) -> None:
    folder = tiny("llama")
    converted = prepare(str(folder), engine="ctranslate2").folder
    assert prepare(str(converted), report=messages.append).engine == "ctranslate2"
    assert messages == ["engine ctranslate2: the model is a CTranslate2 folder"]
    file = tiny_gguf(folder)
    assert prepare(str(file)).engine == "packed"
    assert prepare(str(file), quantization="int8").quantization == "int8"


@pytest.mark.parametrize("started_with", ["transformers", "ctranslate2", "packed"])
def test_a_job_goes_on_with_the_engine_of_its_journal(
    tiny: Tiny, home: Path, tmp_path: Path, started_with: str
) -> None:
    rows = tmp_path / "rows.txt"
    rows.write_text("\n".join(PROMPTS) + "\n")
    job = packhorse.JobConfig(
        str(tiny("llama")),
        str(rows),
        tmp_path / "out.jsonl",
        EngineConfig(started_with),
        decoding=packhorse.SamplingParams(max_new_tokens=8),
        reading=InputConfig(limit=2),
    )
    packhorse.run(job)
    rest = replace(job, engine=EngineConfig(), reading=InputConfig())
    report = packhorse.run(rest)
    assert report.resolved is not None
    assert report.resolved["engine"] == started_with
    assert report.counts.completed == len(PROMPTS)
    with Journal(Workspace.of(job.output).journal) as journal:
        assert journal.meta("settings")["engine"] == started_with
    with pytest.raises(JobChangedError, match=f"engine was '{started_with}'"):
        packhorse.run(replace(rest, engine=EngineConfig("fake")))


def test_run_says_which_engine_and_why(
    tiny: Tiny, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from packhorse.cli import main

    rows = tmp_path / "rows.txt"
    rows.write_text(PROMPTS[0] + "\n")
    words = ["run", str(tiny("llama")), str(rows), "-o", str(tmp_path / "out.jsonl"), "--json"]
    assert main([*words, "--max-new-tokens", "2"]) == 0
    out, err = capsys.readouterr()
    assert "engine packed: fastest without accuracy loss for llama on this CPU\n" in err
    assert json.loads(out.splitlines()[-1])["resolved"]["engine"] == "packed"
