"""Reasoning and tools as OpenAI's own client reads them: whole, streamed, in batches.

The fake engine gives answers in the formats of models that reason and call tools.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from packhorse.engines.fake import ANSWERS_VARIABLE
from servers import Served, served

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
ANSWERS = {
    "riddle": "<think>\nLet me think. 🐎\n</think>\n\nA packhorse.",
    "plain": "Just  text.\n",
    "weather": f"<think>I need it.</think>\nLet me look.\n{CALL}\n{CALL}",
    "broken": '<tool_call>{"name": "weather", "arguments": </tool_call>',
    "endless": "<think>" + "on and on " * 40,
}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("reasoning")
    answers = folder / "answers.json"
    answers.write_text(json.dumps(list(ANSWERS.items())))
    options = ("--thinking-tags", "<think>,</think>", "--tool-format", "hermes")
    arguments = ("fake", "--engine", "fake", *options, "--state", str(folder / "state"))
    variables: Any = {ANSWERS_VARIABLE: str(answers)}
    with served(*arguments, **variables) as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def ask(client: openai.OpenAI, text: str, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="fake", messages=messages, **options)


def streamed(client: openai.OpenAI, text: str, **options: Any) -> dict[str, Any]:
    """The deltas of a stream, joined as clients join them."""
    found: dict[str, Any] = {"content": "", "reasoning": "", "calls": {}, "reason": None}
    options["stream_options"] = {"include_usage": True}
    for chunk in ask(client, text, stream=True, **options):
        if not chunk.choices:
            found["usage"] = chunk.usage
            continue
        delta = chunk.choices[0].delta
        found["content"] += delta.content or ""
        found["reasoning"] += getattr(delta, "reasoning_content", None) or ""
        for call in delta.tool_calls or ():
            assert call.index not in found["calls"], "one delta per call"
            found["calls"][call.index] = (call.id, call.function.name, call.function.arguments)
        found["reason"] = chunk.choices[0].finish_reason or found["reason"]
    return found


def test_reasoning_is_apart(client: openai.OpenAI) -> None:
    answer = ask(client, "riddle")
    message = answer.choices[0].message
    assert message.reasoning_content == "Let me think. 🐎"
    assert message.content == "A packhorse."
    tags = len("<think>\nLet me think. 🐎\n</think>".encode())
    assert answer.usage.completion_tokens_details.reasoning_tokens == tags
    assert answer.usage.completion_tokens == len(ANSWERS["riddle"].encode())
    stream = streamed(client, "riddle")
    assert stream["reasoning"] == message.reasoning_content
    assert stream["content"] == message.content
    assert stream["usage"].completion_tokens_details.reasoning_tokens == tags


def test_text_without_reasoning_is_untouched(client: openai.OpenAI) -> None:
    message = ask(client, "plain").choices[0].message
    assert message.content == "Just  text.\n"
    assert not hasattr(message, "reasoning_content")
    assert streamed(client, "plain")["content"] == "Just  text.\n"


@pytest.mark.parametrize("limit", [0, 5, 30])
def test_reasoning_ends_at_its_limit(client: openai.OpenAI, limit: int) -> None:
    options = {"max_tokens": 100, "extra_body": {"thinking": limit}}
    answer = ask(client, "endless", **options)
    message = answer.choices[0].message
    assert (getattr(message, "reasoning_content", "")) == ("on and on " * 40)[:limit].strip()
    assert answer.usage.completion_tokens_details.reasoning_tokens == limit + len("<think></think>")
    assert message.content
    stream = streamed(client, "endless", **options)
    assert stream["content"] == message.content


def test_tools_are_called(client: openai.OpenAI) -> None:
    choice = ask(client, "weather", tools=[TOOL], max_tokens=400).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    assert choice.message.reasoning_content == "I need it."
    calls = choice.message.tool_calls
    assert [call.function.name for call in calls] == ["weather", "weather"]
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Köln"}] * 2
    assert len({call.id for call in calls}) == 2
    stream = streamed(client, "weather", tools=[TOOL], max_tokens=400)
    assert stream["reason"] == "tool_calls"
    assert stream["content"] == choice.message.content
    assert [each[1:] for each in stream["calls"].values()] == [
        (call.function.name, call.function.arguments) for call in calls
    ]


def test_one_call_at_a_time(client: openai.OpenAI) -> None:
    options = {"tools": [TOOL], "max_tokens": 400, "parallel_tool_calls": False}
    assert len(ask(client, "weather", **options).choices[0].message.tool_calls) == 1
    assert len(streamed(client, "weather", **options)["calls"]) == 1


def test_a_result_goes_back(client: openai.OpenAI) -> None:
    first = ask(client, "weather", tools=[TOOL], max_tokens=400).choices[0].message
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": "riddle"} for call in first.tool_calls
    ]
    messages: Any = [{"role": "user", "content": "weather"}, first, *results]
    answer = client.chat.completions.create(model="fake", messages=messages, tools=[TOOL])
    assert answer.choices[0].message.content == "A packhorse."


def test_what_is_no_call_is_text(client: openai.OpenAI) -> None:
    choice = ask(client, "broken", tools=[TOOL]).choices[0]
    assert (choice.message.content, choice.finish_reason) == (ANSWERS["broken"], "stop")
    assert streamed(client, "broken", tools=[TOOL])["content"] == ANSWERS["broken"]
    for options in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        message = ask(client, "weather", max_tokens=400, **options).choices[0].message
        assert message.tool_calls is None
        assert CALL in message.content


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice must be auto or none"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0] has type 'custom'"),
        ({"tools": [{**TOOL, "function": {**TOOL["function"], "strict": True}}]}, "is strict"),
        ({"extra_body": {"thinking": -1}}, "thinking must be"),
        ({"extra_body": {"thinking": 5, "enable_thinking": False}}, "contradict each other"),
        ({"reasoning_effort": "low"}, "reasoning_effort is 'low'"),
        ({"extra_body": {"continue_final_message": True}}, "needs a last message"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    client: openai.OpenAI, options: Any, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "plain", **options)
    assert words in str(caught.value)


def test_an_unknown_template_option_is_warned_of_once(
    server: Served, client: openai.OpenAI
) -> None:
    for _ in range(2):
        ask(client, "plain", extra_body={"chat_template_kwargs": {"no_such_option": 1}})
    assert sum("no_such_option" in line for line in server.lines) == 1


def test_a_prompt_of_token_ids(client: openai.OpenAI) -> None:
    ids = list(b"a riddle")
    by_ids = client.completions.create(model="fake", prompt=ids).choices[0].text
    by_text = client.completions.create(model="fake", prompt="a riddle").choices[0].text
    assert by_ids == by_text == ANSWERS["riddle"]  # a text completion has no field for reasoning
    both = client.completions.create(model="fake", prompt=[ids, list(b"plain")])
    assert [each.text for each in both.choices] == [ANSWERS["riddle"], ANSWERS["plain"]]


def test_a_batch(client: openai.OpenAI, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "riddle"}]},
        {"messages": [{"role": "user", "content": "weather"}], "tools": [TOOL], "max_tokens": 400},
    ]
    lines = [
        {"custom_id": str(place), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for place, body in enumerate(bodies)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("in.jsonl", io.BytesIO(content)), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    deadline = time.monotonic() + 60
    while batch.status != "completed":
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    assert batch.output_file_id is not None
    output = client.files.content(batch.output_file_id).text
    first, second = (json.loads(line)["response"]["body"] for line in output.splitlines())
    assert first["choices"][0]["message"]["reasoning_content"] == "Let me think. 🐎"
    assert first["choices"][0]["message"]["content"] == "A packhorse."
    assert first["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    assert second["choices"][0]["finish_reason"] == "tool_calls"
    (call, _) = second["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
