"""Sampling fields of jobs and rows, from the input to every output."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

import packhorse
from packhorse import EngineConfig, JobConfig, SamplingParams
from packhorse.cli import main
from packhorse.errors import ConfigError, JobChangedError

LIMIT = SamplingParams(max_new_tokens=12)


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    source = tmp_path / "in.jsonl"
    return JobConfig(
        "fake", str(source), tmp_path / "out.jsonl", EngineConfig("fake"), decoding=LIMIT
    )


def answers(job: JobConfig, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    Path(job.input).write_text("".join(json.dumps(row) + "\n" for row in rows))
    packhorse.run(job)
    return [json.loads(line) for line in Path(job.output).read_text().splitlines()]


def body(fields: dict[str, Any], url: str = "/v1/chat/completions") -> dict[str, Any]:
    content: dict[str, Any] = {"messages": [{"role": "user", "content": "hi there"}]}
    if url == "/v1/completions":
        content = {"prompt": "hi there"}
    return {"custom_id": "a", "method": "POST", "url": url, "body": {**content, **fields}}


def test_rows_get_several_choices(job: JobConfig) -> None:
    sampling = {"temperature": 1.0, "seed": 3}
    one, three, greedy = answers(
        job,
        {"id": "one", "prompt": "x", **sampling},
        {"id": "three", "prompt": "x", "n": 3, **sampling},
        {"id": "greedy", "prompt": "x", "n": 2},
    )
    texts = [each["text"] for each in three["choices"]]
    assert texts[0] == three["text"] == one["text"]  # the first choice has the row's own seed
    assert len(set(texts)) == 3
    assert [each["text"] for each in greedy["choices"]] == [greedy["text"]] * 2
    assert three["completion_tokens"] == 3 * one["completion_tokens"]
    assert one["choices"] is None


def test_choices_do_not_depend_on_other_rows(job: JobConfig) -> None:
    row = {"id": "a", "prompt": "x", "n": 4, "temperature": 1.0, "seed": 7}
    (alone,) = answers(job, row)
    other = replace(job, output=Path(job.output).with_name("other.jsonl"))
    beside = answers(other, *({**row, "id": f"b{i}", "seed": i} for i in range(9)), row)
    assert beside[-1] == alone


def test_a_choice_that_fails_fails_its_row(job: JobConfig) -> None:
    rows = answers(job, {"id": "a", "prompt": "", "n": 3}, {"id": "b", "prompt": "x", "n": 3})
    assert rows[0]["error"]["code"] == "empty_prompt"
    assert len(rows[1]["choices"]) == 3


def test_tables_have_columns_for_what_was_asked(job: JobConfig) -> None:
    rows = [{"id": "a", "prompt": "ab", "n": 2, "prompt_logprobs": 1}, {"id": "b", "prompt": "x"}]
    Path(job.input).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for suffix in ("csv", "parquet"):
        output = Path(job.output).with_suffix(f".{suffix}")
        packhorse.run(replace(job, output=output))
        if suffix == "csv":
            with output.open(newline="") as file:
                found = list(csv.DictReader(file))
        else:
            found = pyarrow.parquet.read_table(output).to_pylist()
        assert len(json.loads(found[0]["choices"])) == 2
        assert json.loads(found[0]["prompt_logprobs"])[0] is None
        assert not found[1]["choices"]


def test_batch_lines_have_choices_as_openai_has_them(job: JobConfig) -> None:
    (row,) = answers(job, body({"n": 2, "temperature": 1.0, "logprobs": True, "seed": 1}))
    choices = row["response"]["body"]["choices"]
    assert [each["index"] for each in choices] == [0, 1]
    for choice in choices:
        tokens = choice["logprobs"]["content"]
        assert "".join(each["token"] for each in tokens) == choice["message"]["content"]
    assert row["response"]["body"]["usage"]["completion_tokens"] == 24


def test_echo_and_logprobs_cover_the_prompt(job: JobConfig) -> None:
    fields = {"echo": True, "logprobs": 1, "max_tokens": 0}
    (row,) = answers(job, body(fields, "/v1/completions"))
    (choice,) = row["response"]["body"]["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hi there", "length")
    log_probs = choice["logprobs"]
    assert "".join(log_probs["tokens"]) == "hi there"
    assert log_probs["token_logprobs"][0] is log_probs["top_logprobs"][0] is None
    assert all(each < 0 for each in log_probs["token_logprobs"][1:])
    assert log_probs["text_offset"] == [*range(8)]
    other = replace(job, output=Path(job.output).with_name("other.jsonl"))
    (row,) = answers(other, body({**fields, "max_tokens": 3}, "/v1/completions"))
    (choice,) = row["response"]["body"]["choices"]
    assert choice["text"].startswith("hi there")
    assert choice["logprobs"]["text_offset"] == [*range(11)]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]


def test_prompt_logprobs_are_those_of_vllm(job: JobConfig) -> None:
    (row,) = answers(job, body({"prompt_logprobs": 2}))
    first, second, *_ = row["response"]["body"]["prompt_logprobs"]
    assert first is None
    assert sorted(next(iter(second.values()))) == ["decoded_token", "logprob", "rank"]
    other = replace(job, output=Path(job.output).with_name("other.jsonl"))
    (row,) = answers(other, body({"prompt_logprobs": 0}, "/v1/completions"))
    found = row["response"]["body"]["choices"][0]["prompt_logprobs"]
    assert [each["decoded_token"] for each in found[1].values()] == ["i"]


def test_echo_is_for_text(job: JobConfig) -> None:
    messages = [{"role": "user", "content": "x"}]
    text, chat = answers(
        job,
        {"id": "a", "prompt": "hello", "echo": True},
        {"id": "b", "messages": messages, "echo": True},
    )
    assert text["text"].startswith("hello")
    assert chat["error"]["code"] == "bad_option"


def test_rows_with_other_fields_are_no_duplicates(job: JobConfig) -> None:
    fields: list[dict[str, Any]] = [
        {},
        {"presence_penalty": 1},
        {"logit_bias": {"5": 1}},
        {"bad_words": ["x"]},
        {"min_tokens": 3},
        {"suppress_tokens": [4]},
    ]
    rows = answers(job, *({"id": str(i), "prompt": "x", **each} for i, each in enumerate(fields)))
    assert len({row["text"] for row in rows}) == len(fields)


def test_neutral_values_change_nothing(job: JobConfig) -> None:
    neutral = {
        "n": 1, "min_p": 0, "presence_penalty": 0, "frequency_penalty": 0.0, "top_k": -1,
        "repetition_penalty": 1, "logit_bias": {}, "bad_words": [], "suppress_tokens": [],
        "min_tokens": 0, "ignore_eos": False, "stop_token_ids": [], "echo": False, "seed": -1,
        "prompt_logprobs": None,
    }  # fmt: skip
    plain, same = answers(job, {"id": "a", "prompt": "x"}, {"id": "b", "prompt": "x", **neutral})
    assert same["text"] == plain["text"]
    assert set(same) == set(plain)


def test_options_of_the_job_are_overridden_by_rows(job: JobConfig) -> None:
    job = replace(job, decoding=replace(LIMIT, presence_penalty=1.0, n=2))
    usual, own = answers(
        job, {"id": "a", "prompt": "x"}, {"id": "b", "prompt": "x", "presence_penalty": 0, "n": 1}
    )
    assert usual["text"] != own["text"]
    assert len(usual["choices"]) == 2
    assert own["choices"] is None


def test_other_sampling_is_refused_on_resume(job: JobConfig) -> None:
    answers(job, {"id": "a", "prompt": "x"})
    changed = replace(job, decoding=replace(LIMIT, min_p=0.1, logit_bias=((5, 1.0),)))
    with pytest.raises(JobChangedError, match=r"sampling was None, is .*min_p"):
        packhorse.run(changed)
    other = replace(changed, output=Path(job.output).with_name("other.jsonl"))
    packhorse.run(other)
    packhorse.run(other)
    with pytest.raises(JobChangedError, match="sampling was"):
        packhorse.run(replace(other, decoding=LIMIT))


def test_min_tokens_must_fit(job: JobConfig) -> None:
    fits, row = answers(
        job,
        {"id": "a", "prompt": "x", "min_tokens": 12},
        {"id": "b", "prompt": "x", "min_tokens": 13},
    )
    assert fits["completion_tokens"] == 12
    assert "min_tokens must be at most max_new_tokens (12), got 13" in row["error"]["message"]


def test_stop_strings_count_after_min_tokens(job: JobConfig) -> None:
    (free,) = answers(job, {"id": "a", "prompt": "x"})
    stop = free["text"][1:3]
    other = replace(job, output=Path(job.output).with_name("other.jsonl"))
    early, late = answers(
        other,
        {"id": "a", "prompt": "x", "stop": stop},
        {"id": "b", "prompt": "x", "stop": stop, "ignore_eos": True, "min_tokens": 3},
    )
    assert early["text"] == free["text"][:1]
    assert len(late["text"]) >= 3


def test_options_of_the_command_line(job: JobConfig, capsys: pytest.CaptureFixture[str]) -> None:
    Path(job.input).write_text('{"prompt": "x"}\n')
    fields = [
        "--n", "2", "--min-p", "0.1", "--presence-penalty", "-0.5", "--frequency-penalty", "1",
        "--repetition-penalty", "1.2", "--logit-bias", "5=-100", "--logit-bias", "7=2.5",
        "--bad-words", "a", "--bad-words", "b c", "--suppress-tokens", "1,2", "--min-tokens", "2",
        "--ignore-eos", "--stop-token-ids", "3", "--echo", "--prompt-logprobs", "1",
        "--temperature", "1", "--top-k", "-1", "--seed", "4",
    ]  # fmt: skip
    command = ["run", "fake", job.input, "-o", str(job.output), "--engine", "fake", *fields]
    assert main(command) == 0
    (row,) = [json.loads(line) for line in Path(job.output).read_text().splitlines()]
    assert len(row["choices"]) == 2
    assert row["text"].startswith("x")
    settings = json.loads((Path(job.output).parent / "out.jsonl.manifest.json").read_text())[
        "settings"
    ]
    assert settings["sampling"]["logit_bias"] == [[5, -100.0], [7, 2.5]]
    assert settings["sampling"]["suppress_tokens"] == [1, 2]
    for wrong in ("x", "5", "5=x"):
        with pytest.raises(SystemExit):
            main([*command, "--logit-bias", wrong])


def test_a_job_whose_engine_does_not_support_a_field_says_which_do(
    job: JobConfig, built: dict[str, Path]
) -> None:
    Path(job.input).write_text('{"prompt": "x"}\n')
    engine = EngineConfig("ctranslate2")
    chosen = replace(
        job, model=str(built["llama"]), engine=engine, decoding=replace(LIMIT, min_p=0.1)
    )
    with pytest.raises(
        ConfigError, match=r"ctranslate2 does not support min_p.*transformers or packed"
    ):
        packhorse.run(chosen)
