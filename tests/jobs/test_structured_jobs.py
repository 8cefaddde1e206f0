"""Whole jobs whose answers are JSON: what outputs say of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet
import pytest

import packhorse
from packhorse import EngineConfig, InputConfig, JobConfig, PromptOptions, SamplingParams
from packhorse.data import NumberId, parse_json_answer
from packhorse.outputs import OutputRow, write_output
from packhorse.params.structured_output import property_types, structured_output

SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "sure": {"anyOf": [{"$ref": "#/$defs/Flag"}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["text", "age", "sure", "tags"],
    "additionalProperties": False,
    "$defs": {"Flag": {"type": "boolean"}},
}


@pytest.fixture
def job(built: dict[str, Path], tmp_path: Path) -> JobConfig:
    source = tmp_path / "in.jsonl"
    rows = [{"id": f"r{n}", "prompt": f"row {n}"} for n in range(1, 17)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JobConfig(
        model=str(built["llama"]),
        input=str(source),
        output=tmp_path / "out.jsonl",
        engine=EngineConfig(engine="packed", threads=1),
        decoding=SamplingParams(
            max_new_tokens=150,
            temperature=1.0,
            seed=5,
            structured_outputs=structured_output("json_schema", SCHEMA),
        ),
    )


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_has_the_object_and_says_what_was_truncated(job: JobConfig) -> None:
    packhorse.run(job)
    rows = lines_of(Path(job.output))
    for row in rows:
        if row["parsed_error"] is None:
            jsonschema.validate(row["parsed"], SCHEMA)
            assert row["parsed"] == json.loads(row["text"])
        else:
            assert (row["parsed"], row["finish_reason"]) == (None, "length")
            assert row["parsed_error"] == "truncated"
    assert sum(row["parsed_error"] is None for row in rows) > 0


def test_tables_have_a_column_per_property(job: JobConfig) -> None:
    packhorse.run(job)
    expected = [row["parsed"] for row in lines_of(Path(job.output))]
    for suffix in (".csv", ".parquet"):
        packhorse.run(replace(job, output=Path(job.output).with_suffix(suffix)))
    table = pyarrow.parquet.read_table(Path(job.output).with_suffix(".parquet"))
    types = [str(table.schema.field(name).type) for name in ("parsed_text", "age", "sure", "tags")]
    assert types == ["string", "int64", "bool", "string"]
    assert "parsed" not in table.schema.names
    for row, parsed in zip(table.to_pylist(), expected, strict=True):
        if parsed is None:
            assert (row["age"], row["parsed_error"]) == (None, "truncated")
            continue
        found = {name: row[name] for name in ("age", "sure")}
        found |= {"text": row["parsed_text"], "tags": json.loads(row["tags"])}
        assert found == parsed
    with Path(job.output).with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    for cell, parsed in zip(cells, expected, strict=True):
        if parsed is not None:
            assert (cell["age"], cell["parsed_text"]) == (str(parsed["age"]), parsed["text"])
            assert cell["sure"] == ("" if parsed["sure"] is None else json.dumps(parsed["sure"]))


def test_a_row_with_its_own_definition(job: JobConfig) -> None:
    rows = [
        {"id": "plain", "prompt": "x"},
        {"id": "own", "prompt": "x", "structured_outputs": {"json": {"type": "boolean"}}},
        {"id": "bad", "prompt": "x", "guided_json": {"type": "object", "not": {}}},
        {"id": "choice", "prompt": "x", "guided_choice": ["yes", "no"]},
    ]
    Path(job.input).write_text("".join(json.dumps(row) + "\n" for row in rows))
    packhorse.run(replace(job, decoding=SamplingParams(max_new_tokens=9)))
    plain, own, bad, choice = lines_of(Path(job.output))
    assert (plain["parsed"], plain["parsed_error"]) == (None, None)
    assert own["parsed"] in (True, False)
    assert bad["error"]["code"] == "bad_option"
    assert "not" in bad["error"]["message"]
    assert choice["text"] in ("yes", "no")
    assert (choice["parsed"], choice["parsed_error"]) == (None, None)


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        ('{"a": 1}', "stop", ({"a": 1}, None)),
        ('{"a": 1}', "length", ({"a": 1}, None)),
        ('{"a": 1', "length", (None, "truncated")),
        ('{"a": 1', "stop", (None, "not_json")),
        ("12", "stop", (12, None)),
        ("12", "length", (None, "truncated")),
        ("null", "stop", (None, None)),
        ("true", "length", (True, None)),
        ("NaN", "stop", (None, "not_json")),
        ("[" * 200_000, "stop", (None, "not_json")),
        ("9" * 5000, "stop", (NumberId("9" * 5000), None)),
    ],
)
def test_what_an_answer_is_read_as(text: str, reason: str, expected: tuple[Any, Any]) -> None:
    assert parse_json_answer(text, reason) == expected


def test_types_of_properties() -> None:
    schema = {
        "$ref": "#/$defs/Top",
        "$defs": {
            "Top": {
                "type": "object",
                "properties": {
                    "s": {"type": ["string", "null"]},
                    "n": {"type": "number"},
                    "e": {"enum": [1, 2, None]},
                    "c": {"const": "x"},
                    "m": {"enum": [1, "x"]},
                    "o": {"type": "object"},
                    "loop": {"$ref": "#/$defs/Loop"},
                },
            },
            "Loop": {"$ref": "#/$defs/Loop"},
        },
    }
    definition = json.dumps(schema)
    structured = replace(structured_output("json_object"), kind="json_schema")
    found = property_types(replace(structured, definition=definition))
    assert found == {
        "s": "string", "n": "float64", "e": "int64", "c": "string", "m": "json", "o": "json",
        "loop": "json",
    }  # fmt: skip
    assert property_types(structured_output("regex", "a+")) == {}


def test_values_beyond_the_types_of_columns_lose_no_row(tmp_path: Path) -> None:
    texts = ['{"i": 1, "n": 1}', f'{{"i": {10**30}, "n": 1e999}}', '{"i": 1.5, "n": "x"}', "[1]"]
    rows = [
        OutputRow(f"r{n}", text, "stop", 1, 1, None, None, n, is_json=True)
        for n, text in enumerate(texts)
    ]
    types = {"i": "int64", "n": "float64"}
    write_output(
        tmp_path / "out.parquet", rows, extra_columns=["parsed", "parsed_error"], properties=types
    )
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["i"], row["n"]) for row in found] == [(1, 1.0), *[(None, None)] * 3]
    assert [row["text"] for row in found] == texts
    write_output(tmp_path / "out.jsonl", rows, extra_columns=["parsed", "parsed_error"])
    assert lines_of(tmp_path / "out.jsonl")[1]["parsed"]["i"] == 10**30


@pytest.mark.parametrize("engine", ["packed", "transformers"])
@pytest.mark.parametrize("opens", [True, False])
def test_a_structured_output_begins_after_the_reasoning(
    tiny: Callable[[str], Path], tmp_path: Path, engine: str, opens: bool
) -> None:
    """Tags that are tokens of the tiny model; random weights end no reasoning, so a limit does."""
    options = PromptOptions(
        thinking=6, thinking_tags=("<|endoftext|>", "<|im_start|>"), raw_prompts=True
    )
    source = tmp_path / "in.jsonl"
    prompts = ["the packhorse" + "<|endoftext|>" * opens, "rope bridge" + "<|endoftext|>" * opens]
    source.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in prompts))
    packhorse.run(
        JobConfig(
            model=str(tiny("llama")),
            input=str(source),
            output=tmp_path / "out.jsonl",
            engine=EngineConfig(engine=engine, threads=1),
            decoding=SamplingParams(
                max_new_tokens=80,
                structured_outputs=structured_output("choices", ["yes", "no"]),
            ),
            reading=InputConfig(prompts=options),
        )
    )
    for row in lines_of(tmp_path / "out.jsonl"):
        assert row["text"] in ("yes", "no"), row
        assert bool(row["reasoning_tokens"]) == opens or not opens


def test_a_batch_file_with_tools_reasoning_and_response_format(job: JobConfig) -> None:
    """As written for OpenAI; the tiny model has no tags of reasoning and calls no tool."""
    message = {"role": "user", "content": "row 1"}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    schema = {"name": "person", "strict": True, "schema": SCHEMA}
    bodies: list[dict[str, Any]] = [
        {"response_format": {"type": "json_schema", "json_schema": schema}, "max_tokens": 150},
        {"response_format": {"type": "json_object"}, "max_completion_tokens": 60},
        {"tools": [tool], "tool_choice": "auto", "max_tokens": 5},
        {"reasoning_effort": "low", "max_tokens": 5},
        {"response_format": {"type": "text"}, "max_tokens": 5},
    ]
    lines = [
        {
            "custom_id": f"r{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "gpt-4o-mini",
                "messages": [message],
                "temperature": 1,
                "seed": 5,
                **body,
            },
        }
        for n, body in enumerate(bodies)
    ]
    Path(job.input).write_text("".join(json.dumps(line) + "\n" for line in lines))
    reading = InputConfig(served_model_name=("gpt-4o-mini",))
    packhorse.run(replace(job, decoding=SamplingParams(max_new_tokens=9), reading=reading))
    found = {row["custom_id"]: row for row in lines_of(Path(job.output))}
    choices = {}
    for name, row in found.items():
        if row["error"] is None:
            (choices[name],) = row["response"]["body"]["choices"]
    assert set(choices) == {"r0", "r1", "r4"}
    assert found["r2"]["error"]["code"] == "chat_template"  # it leaves out the tool
    assert found["r3"]["error"]["code"] == "unsupported_option"
    for name in ("r0", "r1"):
        if choices[name]["finish_reason"] == "stop":
            value = json.loads(choices[name]["message"]["content"])
            jsonschema.validate(value, SCHEMA if name == "r0" else {"type": "object"})
