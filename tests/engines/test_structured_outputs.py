"""Answers match what they must match, and rows beside them do not change."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jsonschema
import pytest
from hypothesis import strategies as st

import packhorse
from packhorse.data import Completion, Request, SamplingParams, parse_json_answer
from packhorse.openai_format.request_fields import read_options
from packhorse.openai_format.row_errors import RowError
from packhorse.params.structured_output import StructuredOutput, structured_output
from packhorse.profiling.run_metrics import Meter
from packhorse.tokenization import Tokenizer

Tiny = Callable[[str], Path]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "sure": {"type": "boolean"},
    },
    "required": ["name", "age", "sure"],
    "additionalProperties": False,
}
TEXTS = ["one", "Who is Anna?", "What is the capital of France? Answer in one word, please."]


@pytest.fixture(scope="module", params=["packed float32", "packed int8", "transformers float32"])
def model(
    request: pytest.FixtureRequest, built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[packhorse.Model]:
    engine, quantization = request.param.split()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKHORSE_HOME", str(tmp_path_factory.mktemp("home")))
        config = packhorse.EngineConfig(engine=engine, quantization=quantization, threads=1)
        with packhorse.load(str(built["llama"]), engine=config) as loaded:
            yield loaded


def answers(model: packhorse.Model, structured: StructuredOutput | None, **more: Any) -> list[str]:
    options = {"max_new_tokens": 120, "temperature": 1.0, "seed": 7, **more}
    found = list(model.generate(TEXTS, structured_outputs=structured, **options))
    assert all(isinstance(each, Completion) for each in found), found
    return [
        each.text for each in found if isinstance(each, Completion) and each.finish_reason == "stop"
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_finished_answers_are_valid_by_the_schema(
    model: packhorse.Model, temperature: float
) -> None:
    found = answers(model, structured_output("json_schema", PERSON), temperature=temperature)
    for text in found:
        jsonschema.validate(json.loads(text), PERSON)
    assert found or temperature == 0.0


def test_the_other_kinds_match(model: packhorse.Model) -> None:
    dates = answers(model, structured_output("regex", r"\d{4}-[01]\d(-[\d])?"))
    assert len(dates) == 3
    assert all(re.fullmatch(r"[0-9]{4}-[01][0-9](-[0-9])?", each) for each in dates)
    choices = ["yes", "no", 'a "quoted" one', "z\u00fcrich\n", "\U0001f600"]
    assert set(answers(model, structured_output("choices", choices))) <= set(choices)
    sums = answers(model, structured_output("grammar", 'start: N "+" N\nN: /[1-9]/'))
    assert all(re.fullmatch(r"[1-9]\+[1-9]", each) for each in sums)
    assert len(sums) == 3
    for text in answers(model, structured_output("json_object"), max_new_tokens=200):
        assert isinstance(json.loads(text), dict)


def test_rows_beside_constrained_ones_do_not_change(model: packhorse.Model) -> None:
    alone = outcomes(model, [Request(i, i, i + 1, text) for i, text in enumerate(TEXTS)])
    options = read_options({"guided_json": PERSON})
    rows = [
        Request(2 * i + odd, 2 * i + odd, 1, text, options if odd else {})
        for i, text in enumerate(TEXTS)
        for odd in (0, 1)
    ]
    mixed = outcomes(model, rows)
    assert len(mixed) == 2 * len(TEXTS)
    assert [mixed[2 * i] for i in range(len(TEXTS))] == [alone[i] for i in range(len(TEXTS))]


def outcomes(model: packhorse.Model, rows: list[Request]) -> dict[int, str]:
    """Texts of the rows by index."""
    decoding = SamplingParams(max_new_tokens=20)
    tokenizer = Tokenizer(model.codec, None, "error", model.now())
    started = model.start_generation(tokenizer, decoding, model.budget(decoding), Meter())
    found = list(started.outcomes(iter(rows)))
    return {
        each.index: each.text if isinstance(each, Completion) else each.message for each in found
    }


keys = st.text("abc", min_size=1, max_size=3)
leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda low, width: {"type": "integer", "minimum": low, "maximum": low + width},
              st.integers(-50, 50), st.integers(0, 200)),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 6)),
    st.builds(lambda values: {"enum": values}, st.lists(st.one_of(keys, st.integers(-5, 5),
              st.booleans(), st.none()), min_size=1, max_size=4)),
    st.builds(lambda value: {"const": value}, st.one_of(keys, st.integers(-5, 5))),
    st.just({"type": "string", "pattern": "^[ab]{1,3}$"}),
)  # fmt: skip


def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    arrays = st.builds(
        lambda items, low, more: {
            "type": "array", "items": items, "minItems": low, "maxItems": low + more
        },
        inner, st.integers(0, 2), st.integers(0, 2),
    )  # fmt: skip
    objects = st.dictionaries(keys, inner, max_size=3).flatmap(
        lambda properties: st.builds(
            lambda required: {
                "type": "object", "properties": properties, "required": required,
                "additionalProperties": False,
            },
            st.sets(st.sampled_from(sorted(properties))).map(sorted) if properties else st.just([]),
        )
    )  # fmt: skip
    either = st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner)
    return st.one_of(arrays, objects, either)


schemas = st.recursive(leaves, nested, max_leaves=5)


@pytest.mark.slow
@hypothesis.given(schema=schemas, seed=st.integers(0, 1000))
@hypothesis.settings(max_examples=150)
def test_answers_are_valid_by_random_schemas(
    schema: dict[str, Any], seed: int, model: packhorse.Model
) -> None:
    structured = structured_output("json_schema", schema)
    for text in answers(model, structured, seed=seed, max_new_tokens=100):
        jsonschema.validate(json.loads(text), schema)
        assert parse_json_answer(text, "stop") == (json.loads(text), None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guided_json": {"not": {"type": "string"}}}, r'guided_json: Unimplem.* \["not"\]'),
        ({"guided_json": {"type": "strin"}}, "Invalid type: strin"),
        ({"guided_json": "{"}, "no JSON"),
        ({"guided_json": [1]}, "must be an object"),
        ({"guided_regex": "(a"}, "unclosed group"),
        ({"guided_regex": ""}, "must be text"),
        ({"guided_choice": []}, "a list of texts, none of them empty"),
        ({"guided_choice": ["a", 1]}, "a list of texts"),
        ({"guided_grammar": "start: x"}, "x"),
        ({"guided_regex": "a" * 300_000}, "at most 262,144"),
        ({"response_format": "json"}, "must be an object"),
        ({"response_format": {"type": "xml"}}, "text, json_object or json_schema, got 'xml'"),
        ({"response_format": {"type": "json_schema"}}, "json_schema.schema is missing"),
        ({"structured_outputs": {"structural_tag": {}}}, "structural_tag is not supported"),
        ({"guided_json": PERSON, "guided_regex": "a"}, "guided_json and guided_regex differ"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos does not go with"),
    ],
)  # fmt: skip
def test_definitions_that_cannot_be_used_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        read_options(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": PERSON},
            }
        },
        {"structured_outputs": {"json": PERSON, "regex": None}},
        {"structured_outputs": {"json": json.dumps(PERSON)}},
        {"guided_json": PERSON},
        {"guided_json": PERSON, "structured_outputs": {"json": PERSON}},
    ],
)
def test_the_fields_of_openai_and_vllm_mean_the_same(fields: dict[str, Any]) -> None:
    assert read_options(fields) == {"structured_outputs": structured_output("json_schema", PERSON)}


@pytest.mark.parametrize(
    "fields",
    [{"response_format": {"type": "text"}}, {"structured_outputs": {}}, {"guided_json": None},
     {"structured_outputs": {"json_object": False}}],
)  # fmt: skip
def test_neutral_fields_set_nothing(fields: dict[str, Any]) -> None:
    assert read_options(fields) == {}


def test_options_in_a_schema_do_not_relax_it() -> None:
    with pytest.raises(ValueError, match="Unimplemented"):
        structured_output("json_schema", {"not": {}, "x-guidance": {"lenient": True}})


def test_digits_of_an_expression_are_those_of_ascii(model: packhorse.Model) -> None:
    found = answers(model, structured_output("regex", r"\d[\d]\\d?"))
    assert len(found) == 3
    assert all(re.fullmatch(r"[0-9][0-9]\\d?", each) for each in found)


def test_an_engine_that_cannot_says_which_can(built: dict[str, Path], home: Path) -> None:
    config = packhorse.EngineConfig(engine="ctranslate2", threads=1)
    with packhorse.load(str(built["llama"]), engine=config) as loaded:
        options = {"structured_outputs": structured_output("regex", "a")}
        found = outcomes(loaded, [Request(0, 0, 1, "one", options)])
    assert "ctranslate2 does not support structured_outputs" in found[0]
    assert "transformers or packed" in found[0]
