"""Ranges of request fields: the same for rows, request schemas and parameters from Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from packhorse.data import SamplingParams
from packhorse.openai_format.field_types import NumberRange
from packhorse.openai_format.request_fields import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    range_error,
    read_options,
    read_request_options,
    write_options,
)
from packhorse.openai_format.row_errors import RowError
from packhorse.serve.schemas import ChatRequest, CompletionRequest

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "logprobs": True}
TEXT = {"model": "m", "prompt": "hi"}
PARAMS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "top_logprobs": "top_log_probs",
    "logprobs": "top_log_probs",
    "prompt_logprobs": "prompt_log_probs",
}


def values_at_bounds() -> Iterator[Any]:
    for fields, schema, base in (
        (CHAT_FIELDS, ChatRequest, CHAT),
        (COMPLETION_FIELDS, CompletionRequest, TEXT),
    ):
        for name, allowed in fields.items():
            if isinstance(allowed, NumberRange):
                for value in (allowed.minimum - 1, allowed.minimum, allowed.maximum):
                    yield schema, base, name, value, allowed.contains(value)
                yield schema, base, name, allowed.maximum + 1, False


@pytest.mark.parametrize(("schema", "base", "name", "value", "fits"), [*values_at_bounds()])
def test_all_readers_accept_the_same_values(
    schema: type[BaseModel], base: dict[str, Any], name: str, value: int, fits: bool
) -> None:
    body = {**base, name: value}
    param = PARAMS.get(name, name)
    changed: dict[str, Any] = {param: value}
    assert (range_error(replace(SamplingParams(), **changed)) == "") == fits
    if fits:
        assert schema.model_validate(body)
        assert read_request_options(body, is_chat=base is CHAT)[param] == value
    else:
        with pytest.raises(ValidationError):
            schema.model_validate(body)
        with pytest.raises(RowError, match=f"{name} must be an? .*, got {value}"):
            read_request_options(body, is_chat=base is CHAT)


@pytest.mark.parametrize("value", [True, "1", 1.5, [1], {}])
def test_an_integer_is_no_other_type(value: Any) -> None:
    with pytest.raises(RowError, match="top_k must be an integer"):
        read_options({"top_k": value})
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({**CHAT, "top_k": value})


@pytest.mark.parametrize(
    ("options", "is_chat"),
    [
        ({}, True),
        ({"max_new_tokens": 5, "temperature": 0.5, "seed": 1, "stop": ("a",)}, True),
        ({"top_log_probs": 0}, True),
        ({"top_log_probs": 3, "top_k": 2, "top_p": 0.5}, True),
        ({"top_log_probs": 0}, False),
        ({"top_log_probs": 3, "max_new_tokens": 5}, False),
        ({"prompt_log_probs": 3, "logit_bias": ((5, 1.0),), "suppress_tokens": (1,)}, True),
        ({"bad_words": ("a",), "ignore_eos": True, "n": 3, "min_p": 0.1}, False),
    ],
)
def test_written_options_are_read_back(options: dict[str, Any], is_chat: bool) -> None:
    fields = write_options(options, is_chat=is_chat)
    fields = json.loads(json.dumps(fields))
    assert read_request_options(fields, is_chat=is_chat) == options
