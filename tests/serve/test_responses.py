"""`/v1/responses`, model aliases, CORS and sampling fields, driven by the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import packhorse
from packhorse import Completion, EngineConfig
from packhorse.errors import ConfigError
from packhorse.serve.config import ServeConfig
from packhorse.serve.server import check
from servers import FAKE, Served, served

ORIGIN = "https://app.example"
OPTIONS = ("--alias", "gpt-4o-mini", "--alias", "local", "--allow-origin", ORIGIN)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    state = tmp_path_factory.mktemp("state") / "state"
    with served(*FAKE, *OPTIONS, "--state", str(state)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


def text_of(*messages: tuple[str, str], **decoding: Any) -> str:
    chat = [{"role": role, "content": content} for role, content in messages]
    with packhorse.load("fake", engine=EngineConfig("fake")) as model:
        (found,) = model.generate([chat], **{"max_new_tokens": 24, **decoding})
    assert isinstance(found, Completion)
    return found.text


def test_a_response_is_the_text_of_its_chat(client: openai.OpenAI) -> None:
    found = client.responses.create(model="fake", input="hello", max_output_tokens=300)
    assert found.output_text == text_of(("user", "hello"), max_new_tokens=300)
    assert (found.status, found.incomplete_details, found.error) == ("completed", None, None)
    assert found.usage is not None
    assert found.usage.output_tokens == len(found.output_text)
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    short = client.responses.create(model="fake", input="hello", max_output_tokens=3)
    assert (short.status, short.output_text) == ("incomplete", found.output_text[:3])
    assert short.incomplete_details is not None
    assert short.incomplete_details.reason == "max_output_tokens"


def test_items_instructions_and_earlier_answers(client: openai.OpenAI) -> None:
    first = client.responses.create(model="local", input="one", instructions="be brief")
    assert first.output_text == text_of(("system", "be brief"), ("user", "one"))
    history: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
        *[item.model_dump() for item in first.output],
        {"type": "message", "role": "user", "content": "two"},
    ]
    second = client.responses.create(model="fake", input=history)
    messages = ("user", "one"), ("assistant", first.output_text), ("user", "two")
    assert second.output_text == text_of(*messages)


def test_events_are_those_that_the_client_reads(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="fake", input="stream this", max_output_tokens=300)
    kinds, deltas, numbers = [], "", []
    with client.responses.stream(
        model="fake", input="stream this", max_output_tokens=300
    ) as stream:
        for event in stream:
            kinds.append(event.type)
            numbers.append(event.sequence_number)
            if event.type == "response.output_text.delta":
                deltas += event.delta
                assert event.snapshot == deltas
        final = stream.get_final_response()
    assert numbers == [*range(len(numbers))]
    begin = ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[:4] == [*begin, "response.content_part.added"]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert deltas == final.output_text == whole.output_text
    assert final.usage == whole.usage


def test_a_stream_that_ends_at_its_limit_is_incomplete(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(model="fake", input="x", max_output_tokens=4, stream=True)
    )
    assert events[-1].type == "response.incomplete"
    assert len(events[-1].response.output_text) == 4


def test_log_probabilities(client: openai.OpenAI) -> None:
    fields: Any = {
        "model": "fake",
        "input": "x",
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    found = client.responses.create(**fields)
    part: Any = found.output[0].content[0]
    assert "".join(each.token for each in part.logprobs) == found.output_text
    assert all(len(each.top_logprobs) == 2 for each in part.logprobs)
    streamed = [
        each.token
        for event in client.responses.create(**fields, stream=True)
        if event.type == "response.output_text.delta"
        for each in event.logprobs
    ]
    assert streamed == [each.token for each in part.logprobs]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"previous_response_id": "resp_1"}, "responses are not stored"),
        ({"conversation": "conv_1"}, "responses are not stored"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "item_reference"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input_image",
        ),
        ({"temperature": 101}, "temperature"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"extra_body": {"never_heard_of": 1}}, "never_heard_of"),
    ],
)
def test_what_is_not_supported_is_named(
    client: openai.OpenAI, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.responses.create(**{"model": "fake", "input": "x", **fields})


def test_neutral_fields_are_accepted(client: openai.OpenAI) -> None:
    neutral: Any = {
        "store": True, "background": False, "tools": [], "tool_choice": "auto", "metadata": {},
        "parallel_tool_calls": True, "truncation": "disabled", "service_tier": "auto", "top_p": 1,
        "text": {"format": {"type": "text"}}, "include": [], "user": "me", "temperature": 0,
        "previous_response_id": None, "prompt_cache_key": "k", "safety_identifier": "s",
        "extra_body": {"min_p": 0, "presence_penalty": 0},
    }  # fmt: skip
    found = client.responses.create(model="fake", input="x", **neutral)
    assert found.output_text == client.responses.create(model="fake", input="x").output_text
    assert found.model_dump()["store"] is False


def test_stored_responses_are_not_found(client: openai.OpenAI) -> None:
    found = client.responses.create(model="fake", input="x")
    with pytest.raises(openai.NotFoundError, match="not stored"):
        client.responses.retrieve(found.id)
    with pytest.raises(openai.NotFoundError, match="not stored"):
        client.responses.delete(found.id)


def test_aliases_are_models(client: openai.OpenAI) -> None:
    assert [each.id for each in client.models.list()] == ["fake", "gpt-4o-mini", "local"]
    assert client.models.retrieve("local").id == "local"
    messages: Any = [{"role": "user", "content": "x"}]
    texts = {
        client.chat.completions.create(model=name, messages=messages).choices[0].message.content
        for name in ("fake", "gpt-4o-mini", "local")
    }
    assert len(texts) == 1
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt-4o", input="x")


def test_sampling_fields_of_live_requests(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="fake", prompt="say it").choices[0].text
    fields: list[dict[str, Any]] = [
        {"presence_penalty": 1},
        {"logit_bias": {"5": -100}},
        {"extra_body": {"min_tokens": 5}},
        {"extra_body": {"bad_words": ["x"]}},
    ]
    for each in fields:
        found = client.completions.create(model="fake", prompt="say it", **each)
        assert found.choices[0].text != plain
    echoed = client.completions.create(
        model="fake", prompt="say it", echo=True, logprobs=1, max_tokens=0
    )
    assert echoed.choices[0].text == "say it"
    log_probs: Any = echoed.choices[0].logprobs
    assert "".join(log_probs.tokens) == "say it"
    assert log_probs.token_logprobs[0] is None
    parts = client.completions.create(model="fake", prompt="say it", echo=True, stream=True)
    assert "".join(part.choices[0].text for part in parts) == "say it" + plain
    chat = client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "x"}],
        extra_body={"prompt_logprobs": 1, "top_k": -1, "seed": -1},
    )
    assert chat.model_dump()["prompt_logprobs"][0] is None


def test_a_batch_with_sampling_fields_and_choices(client: openai.OpenAI) -> None:
    body = {
        "model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}], "n": 3,
        "temperature": 1, "seed": 5, "frequency_penalty": 0.5, "presence_penalty": 0,
        "logit_bias": {"5": 1}, "logprobs": True, "max_tokens": 8,
    }  # fmt: skip
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = client.files.create(file=json.dumps(line).encode(), purpose="batch")
    batch: Any = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while not batch.output_file_id:
        assert batch.status != "failed", batch
        batch = client.batches.retrieve(batch.id)
    (row,) = client.files.content(batch.output_file_id).text.splitlines()
    choices = json.loads(row)["response"]["body"]["choices"]
    live = client.chat.completions.create(**body)  # type: ignore[call-overload]
    assert [each["message"]["content"] for each in choices] == [
        each.message.content for each in live.choices
    ]
    assert all(each["logprobs"]["content"] for each in choices)


def test_pages_of_allowed_origins_may_use_the_server(server: Served) -> None:
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    with server.client() as client:
        allowed = client.options("/v1/responses", headers=asked)
        assert allowed.status_code == 204
        assert allowed.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        answer = client.get("/v1/models", headers={"origin": ORIGIN})
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["vary"] == "origin"
        other = {**asked, "origin": "https://other.example"}
        refused = client.options("/v1/responses", headers=other)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
        assert "access-control-allow-origin" not in client.get("/v1/models").headers


def test_health_is_readiness(server: Served) -> None:
    with server.client() as client:
        assert client.get("/health").status_code == 200


def test_keys_are_asked_for_behind_cors_and_not_for_health(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    with served(*FAKE, "--allow-origin", "*", "--api-key-file", str(keys)) as server:
        with server.client() as client:
            assert client.get("/health").status_code == 200
            refused = client.get("/v1/models", headers={"origin": ORIGIN})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == ORIGIN
            asked = {"origin": ORIGIN, "access-control-request-method": "GET"}
            assert client.options("/v1/models", headers=asked).status_code == 204
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.address}/v1", api_key="x").responses.create(
                model="fake", input="x"
            )


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://", ""])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match="is no origin"):
        check(ServeConfig("fake", allowed_origins=(origin,)))


def test_a_client_that_leaves_ends_its_row(server: Served) -> None:
    with httpx.Client(base_url=server.address, trust_env=False) as client:
        body = {"model": "fake", "input": "leave", "stream": True, "max_output_tokens": 2000}
        with client.stream("POST", "/v1/responses", json=body) as answer:
            next(answer.iter_lines())
    with server.client() as client:
        assert client.post("/v1/responses", json={"model": "fake", "input": "x"}).is_success
