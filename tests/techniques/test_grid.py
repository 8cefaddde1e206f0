from __future__ import annotations

import argparse
import shlex

import pytest

from packhorse.cli import options
from packhorse.cli import run as cli_run
from packhorse.compare.config import CompareConfig
from packhorse.config import InputConfig, JobConfig
from packhorse.data import SamplingParams
from packhorse.engine_protocol.registry import model_engines
from packhorse.errors import ConfigError
from packhorse.estimate import EstimateConfig
from packhorse.techniques.grid import Combination, combinations, engine_config


def test_formats_an_engine_does_not_know_are_left_out() -> None:
    grid = combinations(
        ["transformers", "ctranslate2"], ["float32", "int8"], ["single", "sorted"], 8
    )
    assert [c.name for c in grid] == [
        "transformers float32 single",
        "transformers float32 sorted",
        "ctranslate2 float32 single",
        "ctranslate2 float32 sorted",
        "ctranslate2 int8 single",
        "ctranslate2 int8 sorted",
    ]


@pytest.mark.parametrize("config", [CompareConfig, EstimateConfig])
def test_the_default_grid_has_every_engine(config: type[CompareConfig | EstimateConfig]) -> None:
    chosen = config("any", "rows.jsonl")
    grid = combinations(chosen.engines, chosen.quantizations, chosen.batchings, 8)
    assert [each.name for each in grid if each.batching == "continuous"] == [
        "packed float32 continuous",
        "packed int8 continuous",
    ]
    assert {each.engine for each in grid} == set(model_engines())


def test_packed_int8_may_be_made_ready_in_any_way() -> None:
    forms = ["int8:plain", "int8", "int8_float32:plain", "int16"]
    found = combinations(["packed"], forms, ["continuous"], 8)
    assert [each.quantization for each in found] == ["int8:plain", "int8"]
    assert "--quantization int8 --quantization-method plain" in " ".join(found[0].options())


def test_continuous_is_the_policy_of_the_packed_engine_and_of_no_other() -> None:
    grid = combinations(
        ["ctranslate2", "packed"], ["float32", "int8", "int16"], ["sorted", "continuous"], 8
    )
    assert [c.name for c in grid] == [
        "ctranslate2 float32 sorted",
        "ctranslate2 int8 sorted",
        "ctranslate2 int16 sorted",
        "packed float32 continuous",
        "packed int8 continuous",
    ]


def test_names_given_twice_are_tried_once() -> None:
    assert len(combinations(["fake", "fake"], ["float32"], ["single", "single"], 8)) == 1


@pytest.mark.parametrize(
    ("engines", "formats", "batchings", "match"),
    [
        (["vllm"], ["float32"], ["single"], "unknown engine 'vllm'"),
        (["fake"], ["int3"], ["single"], "unknown quantization 'int3'"),
        (["fake"], ["float32"], ["sortd"], "unknown batching policy 'sortd'"),
        (["ctranslate2"], ["int16:rotate"], ["single"], "unknown quantization 'int16:rotate'"),
        (["transformers"], ["int8"], ["single"], "no engine of transformers runs int8"),
        ([], ["float32"], ["single"], "no engine"),
        (["packed"], ["float32"], ["single"], "no engine of packed runs float32 in batches single"),
        (["fake"], ["float32"], ["continuous"], "in batches continuous"),
    ],
)
def test_what_cannot_be_tried(
    engines: list[str], formats: list[str], batchings: list[str], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        combinations(engines, formats, batchings, 8)


def test_the_command_is_one_a_shell_can_run() -> None:
    combination = Combination("ctranslate2", "int8", "sorted", 16)
    assert combination.command("my model", "in.jsonl", SamplingParams(64), InputConfig()) == (
        "packhorse run 'my model' in.jsonl -o answers.jsonl --engine ctranslate2 "
        "--quantization int8 --batching sorted --batch-size 16 --max-new-tokens 64"
    )


@pytest.mark.parametrize("batching", ["sorted", "dynamic", "planned"])
def test_the_command_is_the_job_that_was_asked_for(batching: str) -> None:
    """Read back by the command line, it comes to the same settings."""
    combination = Combination("ctranslate2", "int8:plain", batching, 16, 2048)
    decoding = SamplingParams(
        *(64, 0.5, 0.9, 40, 7, ("\n\n", "-- end")),
        n=2,
        min_p=0.1,
        presence_penalty=-0.5,
        frequency_penalty=1.5,
        repetition_penalty=1.1,
        min_tokens=3,
        ignore_eos=True,
        echo=True,
        logit_bias=((5, -100.0), (7, 2.5)),
        bad_words=("a", "-b c"),
        suppress_tokens=(1, 2),
        stop_token_ids=(3,),
        prompt_log_probs=0,
    )
    reading = InputConfig(None, "Say: {text}\n'now'", "-be brief", 10, "truncate-left", "key")
    command = combination.command("m", "in put.csv", decoding, reading, allow_pickle=True)
    words = shlex.split(command)
    parser = argparse.ArgumentParser()
    cli_run.add_arguments(parser)
    asked = parser.parse_args(words[2:])
    assert words[:2] == ["packhorse", "run"]
    job = options.read(asked, JobConfig)
    assert (job.model, job.input, job.allow_pickle) == ("m", "in put.csv", True)
    assert job.decoding == decoding
    assert job.reading == reading
    assert job.engine == engine_config("ctranslate2", "int8:plain")
    batches = job.batching
    sizes = (batches.policy, batches.batch_size, batches.max_batch_tokens)
    assert sizes == ((batching, 16, None) if batching == "sorted" else (batching, 8, 2048))


def test_a_column_is_part_of_the_command() -> None:
    combination = Combination("fake", "float32", "single", 8)
    command = combination.command("m", "in.csv", SamplingParams(9), InputConfig("question"))
    assert command.endswith("--max-new-tokens 9 --prompt-column question")


def test_a_way_into_int8_is_part_of_the_format() -> None:
    grid = combinations(["ctranslate2"], ["int8", "int8:plain"], ["sorted-dynamic"], 8)
    assert [c.name for c in grid] == [
        "ctranslate2 int8 sorted-dynamic", "ctranslate2 int8:plain sorted-dynamic"
    ]  # fmt: skip
    assert grid[1].slug == "ctranslate2-int8-plain-sorted-dynamic"
    assert grid[1].options()[2:6] == ["--quantization", "int8", "--quantization-method", "plain"]
    plain = engine_config("ctranslate2", "int8:plain")
    assert (plain.quantization, plain.quantization_method) == ("int8", "plain")
    assert engine_config("ctranslate2", "int8").quantization_method == "auto"


def test_a_token_limit_is_said_only_where_it_counts() -> None:
    assert "--max-batch-tokens" in Combination("fake", "float32", "dynamic", 8, 99).options()
    assert "--max-batch-tokens" not in Combination("fake", "float32", "fixed", 8, 99).options()
