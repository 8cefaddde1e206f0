"""Whole jobs with reasoning, tools and options of prompts: what outputs and manifests say."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

import packhorse
from packhorse import EngineConfig, InputConfig, JobConfig, PromptOptions, SamplingParams
from packhorse.cli.summary import run_summary
from packhorse.engines.fake import ANSWERS_VARIABLE
from packhorse.errors import ConfigError, JobChangedError
from packhorse.techniques.grid import option_words
from tiny_models import tiny_llama

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
ANSWERS = [["riddle", "<think>Hm.</think>A packhorse."], ["weather", f"Look. {CALL}"]]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def chat(row_id: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"id": row_id, "messages": [{"role": "user", "content": text}], **fields}


ROWS = [chat("a", "riddle"), chat("b", "weather", tools=[TOOL]), {"id": "c", "prompt": "other"}]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    (tmp_path / "answers.json").write_text(json.dumps(ANSWERS))
    monkeypatch.setenv(ANSWERS_VARIABLE, str(tmp_path / "answers.json"))
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = PromptOptions(thinking_tags=("<think>", "</think>"), tool_format="hermes")
    return JobConfig(
        model="fake",
        input=str(source),
        output=tmp_path / "out.jsonl",
        engine=EngineConfig(engine="fake"),
        decoding=SamplingParams(max_new_tokens=200),
        reading=InputConfig(prompts=options),
    )


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_reasoning_and_calls_in_jsonl(job: JobConfig) -> None:
    report = packhorse.run(job)
    riddle, weather, other = lines_of(Path(job.output))
    assert (riddle["reasoning"], riddle["text"]) == ("Hm.", "A packhorse.")
    assert riddle["reasoning_tokens"] == len("<think>Hm.</think>")
    assert riddle["tool_calls"] is None
    assert weather["text"] == f"Look. {CALL}"
    assert weather["finish_reason"] == "tool_calls"
    (call,) = weather["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Köln"}
    assert (other["reasoning"], other["reasoning_tokens"]) == (None, 0)
    manifest = json.loads(report.manifest.read_text())
    assert manifest["sessions"][0]["reasoning_tokens"] == riddle["reasoning_tokens"]
    assert manifest["settings"]["thinking_tags"] == ["<think>", "</think>"]
    assert "reasoning   18 of" in run_summary(report)


def test_reasoning_and_calls_in_tables(job: JobConfig) -> None:
    expected = ["id", "text", "reasoning", "tool_calls", "finish_reason", "prompt_tokens"]
    for suffix in (".csv", ".parquet"):
        done = replace(job, output=Path(job.output).with_suffix(suffix))
        packhorse.run(done)
        if suffix == ".csv":
            with Path(done.output).open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        else:
            rows = pyarrow.parquet.read_table(done.output).to_pylist()
        assert list(rows[0])[:6] == expected
        assert list(rows[0])[6:8] == ["completion_tokens", "reasoning_tokens"]
        assert rows[0]["reasoning"] == "Hm."
        assert int(rows[0]["reasoning_tokens"]) == 18
        assert json.loads(rows[1]["tool_calls"])[0]["function"]["name"] == "weather"
        assert not rows[2]["tool_calls"]


def test_outputs_without_reasoning_have_no_columns_for_it(job: JobConfig) -> None:
    Path(job.input).write_text(json.dumps(ROWS[2]) + "\n")
    packhorse.run(replace(job, reading=InputConfig()))
    (row,) = lines_of(Path(job.output))
    assert not {"reasoning", "reasoning_tokens", "tool_calls"} & set(row)


def test_openai_batch_output(job: JobConfig) -> None:
    lines = [
        {"custom_id": row["id"], "url": "/v1/chat/completions", "body": {**row, "id": None}}
        for row in ROWS[:2]
    ]
    lines.append({"custom_id": "t", "url": "/v1/completions", "body": {"prompt": "riddle"}})
    Path(job.input).write_text("".join(json.dumps(line) + "\n" for line in lines))
    packhorse.run(job)
    riddle, weather, text = (row["response"]["body"] for row in lines_of(Path(job.output)))
    message = riddle["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "A packhorse.")
    assert riddle["usage"]["completion_tokens_details"] == {"reasoning_tokens": 18}
    message = weather["choices"][0]["message"]
    assert message["content"] == "Look."
    assert message["tool_calls"][0]["function"]["name"] == "weather"
    assert weather["choices"][0]["finish_reason"] == "tool_calls"
    assert text["choices"][0]["text"] == ANSWERS[0][1]


def test_a_limit_per_job_and_per_row(job: JobConfig) -> None:
    own: tuple[dict[str, Any], ...] = ({}, {"thinking": 2}, {"thinking": "on"})
    rows = [chat(str(place), "riddle", **options) for place, options in enumerate(own)]
    Path(job.input).write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = replace(job.reading, prompts=replace(job.reading.prompts, thinking=1))
    packhorse.run(replace(job, reading=reading))
    assert [row["reasoning"] for row in lines_of(Path(job.output))] == ["H", "Hm", "Hm."]


def test_equal_prompts_with_other_options_are_other_rows(job: JobConfig) -> None:
    rows = [
        chat("a", "weather", tools=[TOOL]),
        chat("b", "weather", tools=[TOOL], tool_choice="none"),
        chat("c", "weather", tools=[TOOL], parallel_tool_calls=False),
    ]
    Path(job.input).write_text("".join(json.dumps(row) + "\n" for row in rows))
    packhorse.run(job)
    assert [bool(row["tool_calls"]) for row in lines_of(Path(job.output))] == [True, False, True]


def test_options_are_bound_to_the_output(job: JobConfig) -> None:
    packhorse.run(job)
    for changes in (
        {"thinking": 5},
        {"template_options": {"x": 1}},
        {"merge_system": True},
        {"thinking_tags": ("<a>", "</a>")},
    ):
        reading = replace(job.reading, prompts=replace(job.reading.prompts, **changes))
        with pytest.raises(JobChangedError, match=next(iter(changes))):
            packhorse.run(replace(job, reading=reading))


def test_rows_with_an_option_are_other_rows(job: JobConfig) -> None:
    packhorse.run(job)
    rows = [{**ROWS[0], "chat_template_kwargs": {"a": 1}}, *ROWS[1:]]
    Path(job.input).write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = packhorse.run(job)
    assert report.session is not None
    assert report.session["rows_completed"] == 1


def test_engines_that_cannot_limit_reasoning(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "llama")
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "hi"}\n')
    prompts = PromptOptions(thinking=5, thinking_tags=("<|im_start|>", "<|endoftext|>"))
    job = JobConfig(
        model=str(model),
        input=str(source),
        output=tmp_path / "out.jsonl",
        engine=EngineConfig(engine="ctranslate2"),
        decoding=SamplingParams(max_new_tokens=4),
        reading=InputConfig(prompts=prompts),
    )
    with pytest.raises(ConfigError, match="use transformers or packed"):
        packhorse.run(job)


def test_options_as_words_of_a_command() -> None:
    prompts = PromptOptions(
        template_options={"a": False, "b": "x y"},
        thinking=7,
        thinking_tags=("<a>", "</a>"),
        merge_system=True,
        final_assistant="drop",
    )
    assert list(option_words(InputConfig(prompts=prompts, system="-s"), InputConfig())) == [
        "--system=-s",
        "--template-option", "a=false",
        "--template-option", 'b="x y"',
        "--thinking", "7",
        "--thinking-tags", "<a>,</a>",
        "--merge-system",
        "--final-assistant", "drop",
    ]  # fmt: skip


def test_the_command_line_reads_them_back(tmp_path: Path) -> None:
    import argparse

    from packhorse.cli import options

    prompts = PromptOptions(
        template_options={"a": False, "b": "x y"}, thinking=0, thinking_tags=("none",)
    )
    parser = argparse.ArgumentParser()
    options.add_prompts(parser)
    words = option_words(prompts, PromptOptions())
    assert options.read(parser.parse_args(words), PromptOptions) == prompts
    assert options.read(parser.parse_args([]), PromptOptions) == PromptOptions()


@pytest.mark.slow
def test_a_plan_counts_reasoning(job: JobConfig, home: Path) -> None:
    from packhorse.cli.plan import lines
    from packhorse.estimate import EstimateConfig, estimate

    config = EstimateConfig(
        model="fake",
        input=job.input,
        engines=("fake",),
        quantizations=("float32",),
        batchings=("planned",),
        decoding=job.decoding,
        reading=job.reading,
    )
    found = estimate(config, lambda text: None)
    assert found.reasoning_tokens is not None
    assert 0 < found.reasoning_tokens < found.new_tokens
    assert any("are reasoning" in line for line in lines(found))


@pytest.mark.parametrize("engine", ["transformers", "packed"])
def test_the_demonstration_model_continues_an_answer(demo_model_folder: Path, engine: str) -> None:
    """As transformers' own generate does with its own rendering of the chat."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chat = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital city, as everyone knows, is"},
    ]
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder)
    raw: Any = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    ids = torch.tensor([tokenizer(raw, add_special_tokens=False)["input_ids"]])
    theirs: Any = AutoModelForCausalLM.from_pretrained(demo_model_folder, dtype=torch.float32)
    expected = theirs.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    chosen = EngineConfig(engine=engine)
    with packhorse.load("smollm2-135m-instruct", engine=chosen) as model:
        (continued,) = model.generate([chat], max_new_tokens=12)
        options = PromptOptions(raw_prompts=True)
        (of_raw,) = model.generate([raw], max_new_tokens=12, options=options)
        (of_ids,) = model.generate([ids[0].tolist()], max_new_tokens=12)
    for outcome in (continued, of_raw, of_ids):
        assert isinstance(outcome, packhorse.Completion)
        assert outcome.prompt_tokens == ids.shape[1]
        wanted = [each for each in expected.tolist() if each != tokenizer.eos_token_id]
        assert list(outcome.token_ids) == wanted
        assert "Paris" in outcome.text
