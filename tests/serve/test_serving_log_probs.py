"""Log-probabilities as OpenAI's own client reads them: whole, streamed, cut, in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import packhorse
from packhorse import EngineConfig
from servers import Served, served
from tiny_models import ENDOFTEXT, IM_END, IM_START, tiny_llama

pytestmark = pytest.mark.slow  # its servers load a model

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
TOKENS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model whose random weights write bytes of all kinds, broken characters too."""
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module", params=["transformers", "packed", "ctranslate2"])
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[Served]:
    options = ("--engine", request.param, "--max-new-tokens", str(TOKENS), "--name", "tiny")
    with served(str(folder), *options) as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    address = f"{server.address}/v1"
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(folder: Path) -> packhorse.Completion:
    """What the library gives, on an engine of its own."""
    with packhorse.load(str(folder), engine=EngineConfig(engine="transformers")) as model:
        (answer,) = model.generate([QUESTION], max_new_tokens=TOKENS, top_log_probs=5)
    assert isinstance(answer, packhorse.Completion)
    return answer


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=QUESTION, logprobs=True, **options)


def streamed(client: openai.OpenAI, **options: Any) -> tuple[str, list[Any], str]:
    """Text, tokens and finish reason of a stream."""
    text, reason = "", ""
    tokens: list[Any] = []
    for part in chat(client, stream=True, **options):
        choice = part.choices[0]
        text += choice.delta.content or ""
        tokens += choice.logprobs.content if choice.logprobs else []
        reason = choice.finish_reason or reason
    return text, tokens, reason


def test_a_chat_tells_them(client: openai.OpenAI, expected: packhorse.Completion) -> None:
    choice = chat(client, top_logprobs=5).choices[0]
    tokens = choice.logprobs.content
    assert expected.log_probs is not None
    assert len(tokens) == len(expected.log_probs) > 10
    for token, wanted in zip(tokens, expected.log_probs, strict=True):
        assert token.logprob == pytest.approx(wanted.log_prob, abs=1e-4)
        assert len(token.top_logprobs) == 5
        assert token.top_logprobs[0].bytes == token.bytes
        values = [each.logprob for each in token.top_logprobs]
        assert values == pytest.approx([each for _, each in wanted.alternatives], abs=1e-4)
    written = b"".join(bytes(token.bytes) for token in tokens)
    assert written.decode("utf-8", "replace") == choice.message.content == expected.text


def test_a_token_that_is_part_of_a_character_is_its_bytes(client: openai.OpenAI) -> None:
    tokens = chat(client, top_logprobs=20).choices[0].logprobs.content
    every = [each for token in tokens for each in (token, *token.top_logprobs)]
    assert {each.token for each in every if each.bytes is None} <= {ENDOFTEXT, IM_START, IM_END}
    shown = [each for each in every if each.bytes is not None]
    parts = [each for each in shown if each.token.startswith("\\x")]
    assert parts
    for each in shown:
        escaped = "".join(f"\\x{byte:02x}" for byte in each.bytes)
        assert each.token == (escaped if each in parts else bytes(each.bytes).decode())


@pytest.mark.parametrize("top", [None, 0, 3])
def test_a_stream_tells_the_same(client: openai.OpenAI, top: int | None) -> None:
    options = {} if top is None else {"top_logprobs": top}
    whole = chat(client, **options).choices[0]
    text, tokens, reason = streamed(client, **options)
    assert (text, reason) == (whole.message.content, whole.finish_reason)
    assert [token.bytes for token in tokens] == [token.bytes for token in whole.logprobs.content]
    assert [token.logprob for token in tokens] == pytest.approx(
        [token.logprob for token in whole.logprobs.content], abs=1e-4
    )
    assert {len(token.top_logprobs) for token in tokens} == {top or 0}


def test_a_stop_string_cuts_the_tokens_too(client: openai.OpenAI) -> None:
    whole = chat(client).choices[0]
    text = whole.message.content
    stop = text[len(text) // 2 :][:2]
    cut = text[: text.index(stop)]
    choice = chat(client, stop=stop).choices[0]
    assert (choice.message.content, choice.finish_reason) == (cut, "stop")
    tokens = [token.bytes for token in choice.logprobs.content]
    assert tokens == [token.bytes for token in whole.logprobs.content][: len(tokens)]
    written = b"".join(map(bytes, tokens)).decode("utf-8", "replace")
    assert written.startswith(cut)
    without_last = b"".join(map(bytes, tokens[:-1])).decode("utf-8", "ignore")
    assert len(without_last) < len(cut)
    parts = streamed(client, stop=stop)
    assert parts[0] == cut
    assert [token.bytes for token in parts[1]] == tokens


def test_texts_tell_them_in_the_older_shape(client: openai.OpenAI) -> None:
    def text(**options: Any) -> Any:
        return client.completions.create(
            model="tiny", prompt="The packhorse carries", max_tokens=20, **options
        )

    choice = text(logprobs=3).choices[0]
    told = choice.logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == 20
    for token, value, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert top[token] == value == max(top.values())
        assert len(top) == 3
    for token, offset in zip(told.tokens, told.text_offset, strict=True):
        if not token.startswith("bytes:"):
            assert choice.text[offset:].startswith(token)
    assert text().choices[0].logprobs is None
    only = text(logprobs=0).choices[0].logprobs
    assert [list(top) for top in only.top_logprobs] == [[token] for token in only.tokens]
    joined: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "text_offset": []}
    for part in text(logprobs=3, stream=True):
        if part.choices[0].logprobs:
            for name, values in joined.items():
                values += getattr(part.choices[0].logprobs, name)
    assert joined["tokens"] == told.tokens
    assert joined["text_offset"] == told.text_offset


def test_every_choice_has_its_own(client: openai.OpenAI) -> None:
    answer = chat(client, n=8, temperature=1.5, seed=3, top_logprobs=1, max_tokens=12)
    assert len(answer.choices) == 8
    for choice in answer.choices:
        tokens = choice.logprobs.content
        written = b"".join(bytes(token.bytes or []) for token in tokens)
        assert written.decode("utf-8", "replace") == choice.message.content
        for token in tokens:
            assert token.logprob <= token.top_logprobs[0].logprob
    assert len({choice.message.content for choice in answer.choices}) > 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"logprobs": 3}, "logprobs"),
    ],
)
def test_what_cannot_be_told_is_refused(server: Served, options: dict[str, Any], said: str) -> None:
    with server.client() as client:
        body = {"model": "tiny", "messages": QUESTION, **options}
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def batch_lines() -> list[dict[str, Any]]:
    chat_body = {"model": "tiny", "messages": QUESTION, "max_tokens": 9}
    text_body = {"model": "tiny", "prompt": "The packhorse carries", "max_tokens": 9}
    chats, texts = "/v1/chat/completions", "/v1/completions"
    asked = [
        (chats, {**chat_body, "logprobs": True, "top_logprobs": 2}),
        (texts, {**text_body, "logprobs": 2}),
        (chats, chat_body),
        (texts, {**text_body, "logprobs": 21}),
    ]
    return [
        {"custom_id": str(number), "method": "POST", "url": url, "body": body}
        for number, (url, body) in enumerate(asked)
    ]


def test_run_writes_what_the_server_says(
    client: openai.OpenAI, folder: Path, tmp_path: Path
) -> None:
    lines = batch_lines()
    source, output = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    engine = EngineConfig(engine="transformers")
    decoding = packhorse.SamplingParams(max_new_tokens=9)
    reading = packhorse.InputConfig(served_model_name=("tiny",))
    job = packhorse.JobConfig(
        str(folder), str(source), output, engine=engine, decoding=decoding, reading=reading
    )
    packhorse.run(job)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    told = [row["response"]["body"]["choices"][0]["logprobs"] for row in rows[:3]]
    assert told[2] is None
    assert rows[3]["error"]["code"] == "bad_option"
    live = chat(client, top_logprobs=2, max_tokens=9).choices[0].logprobs.to_dict()
    assert [each["bytes"] for each in told[0]["content"]] == [
        each["bytes"] for each in live["content"]
    ]
    assert [each["logprob"] for each in told[0]["content"]] == pytest.approx(
        [each["logprob"] for each in live["content"]], abs=1e-4
    )
    text = client.completions.create(
        model="tiny", prompt="The packhorse carries", max_tokens=9, logprobs=2
    )
    live_text = text.choices[0].logprobs
    assert live_text is not None
    assert told[1]["tokens"] == live_text.tokens
    assert told[1]["text_offset"] == live_text.text_offset
