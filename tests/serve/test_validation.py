"""Errors about bodies: the field that is wrong, the reason that is true, no label of a library."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from packhorse.serve.batch_routes import BatchRequest
from packhorse.serve.schemas import ChatRequest, CompletionRequest, EmbeddingRequest
from packhorse.serve.validation import api_error_of
from servers import FAKE, served

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
FILES, BATCHES = "/v1/files", "/v1/batches"
HELLO = [{"role": "user", "content": "hello"}]
VALID: dict[str, dict[str, Any]] = {
    CHAT: {"model": "fake", "messages": HELLO, "max_tokens": 2},
    TEXT: {"model": "fake", "prompt": "hello", "max_tokens": 2},
    BATCHES: {
        "input_file_id": f"file-{'0' * 24}",
        "endpoint": TEXT,
        "completion_window": "24h",
    },
}
LABELS = re.compile(r"constrained|list\[|function-|\[key\]|Input should|union|nullable|pydantic")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(*FAKE, "--state", str(tmp_path_factory.mktemp("state"))) as server:
        with server.client() as found:
            yield found
        assert not any("Traceback" in line for line in server.lines)
        assert not any("boundary" in line for line in server.lines)


CASES: list[tuple[str, dict[str, Any], str | None, str]] = [
    (TEXT, {"stop": ["a"] * 17}, "stop", "stop must have at most 16 items, got 17"),
    (TEXT, {"stop": [""]}, "stop.0", "stop.0 is empty"),
    (TEXT, {"stop": ""}, "stop", "stop is empty"),
    (TEXT, {"stop": "x" * 300}, "stop", "stop must have at most 256 characters, got 300"),
    (TEXT, {"stop": [1]}, "stop.0", "stop.0 must be text, got 1"),
    (TEXT, {"stop": 5}, "stop", "stop must be text or a list, got 5"),
    (TEXT, {"stop": {}}, "stop", "stop must be text or a list, got an object"),
    (TEXT, {"prompt": []}, "prompt", "prompt is empty"),
    (TEXT, {"prompt": {}}, "prompt", "prompt must be text or a list, got an object"),
    (TEXT, {"prompt": [{}]}, "prompt.0", "must be text or an integer or a list, got an object"),
    (TEXT, {"prompt": ["a", [1, "x"]]}, "prompt.1.1", "must be an integer, got 'x'"),
    (TEXT, {"prompt": "\ud800"}, "prompt", "prompt contains half of a surrogate pair"),
    (TEXT, {"prompt": ["a", "\ud800"]}, "prompt.1", "prompt.1 contains half of a surrogate pair"),
    (TEXT, {"max_tokens": 1.5}, "max_tokens", "max_tokens must be an integer, got 1.5"),
    (TEXT, {"max_tokens": -1}, "max_tokens", "max_tokens must be at least 0, got -1"),
    (TEXT, {"n": True}, "n", "n must be an integer, got true"),
    (TEXT, {"temperature": "hot"}, "temperature", "temperature must be a number, got 'hot'"),
    (TEXT, {"temperature": 200}, "temperature", "temperature must be at most 100, got 200"),
    (TEXT, {"top_p": -1}, "top_p", "top_p must be at least 0, got -1"),
    (
        TEXT,
        {"repetition_penalty": 0},
        "repetition_penalty",
        "repetition_penalty must be above 0, got 0",
    ),
    (TEXT, {"min_p": 1.5}, "min_p", "min_p must be at most 1, got 1.5"),
    (TEXT, {"stream": "yes"}, "stream", "stream must be true or false, got 'yes'"),
    (TEXT, {"stream_options": 3}, "stream_options", "stream_options must be an object, got 3"),
    (TEXT, {"model": None}, "model", "model must be text, got null"),
    (CHAT, {"messages": [7]}, "messages.0", "messages.0 must be an object, got 7"),
    (CHAT, {"messages": [{"content": "a"}]}, "messages.0.role", "messages.0.role is missing"),
    (CHAT, {"messages": []}, "messages", "messages is empty"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": 7}]},
        "messages.0.content",
        "messages.0.content must be text or a list, got 7",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"text": "a"}]}]},
        "messages.0.content.0.type",
        "messages.0.content.0.type is missing",
    ),
    (
        CHAT,
        {"max_tokens": 5, "max_completion_tokens": 3},
        None,
        "max_completion_tokens is 3, but max_tokens is 5; keep one",
    ),
    (BATCHES, {"endpoint": EMBED}, "endpoint", "endpoint must be '/v1/chat/completions' or"),
    (BATCHES, {"metadata": {"a": 1}}, "metadata.a", "metadata.a must be text, got 1"),
    (BATCHES, {"metadata": {"k" * 65: "a"}}, "metadata", "a name in metadata must have at most 64"),
    (BATCHES, {"metadata": {"\ud800": "a"}}, "metadata", "half of a surrogate pair"),
    (BATCHES, {"output_expires_after": {}}, "output_expires_after", "is not supported"),
    (BATCHES, {"metadata": None}, "file_id", "there is no such file"),
]


@pytest.mark.parametrize(("path", "fields", "param", "said"), CASES, ids=str)
def test_the_field_and_the_reason(
    client: httpx.Client, path: str, fields: dict[str, Any], param: str | None, said: str
) -> None:
    error = refused(client.post(path, **body_of({**VALID[path], **fields})))
    assert error["param"] == param
    assert said in error["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body must be a JSON object"),
        (b"null", "the body must be a"),  # the rest depends on the version of FastAPI
        (b"[1]", "the body must be an object, got a list"),
        (b"nonsense", "the body is not JSON: expecting value at character 0"),
        (b'{"model": "fake"', "the body is not JSON: expecting ',' delimiter at character 16"),
        (b'{"model": "\xff"}', "the body is not UTF-8"),
        (b"[" * 100_000, "the body is nested too deeply"),
        (b'{"n": ' + b"5" * 5000 + b"}", "a number of thousands of digits"),
        (b"{}", "model is missing"),
    ],
)
def test_bodies_that_are_no_request(client: httpx.Client, body: bytes, said: str) -> None:
    answer = client.post(TEXT, content=body, headers={"content-type": "application/json"})
    assert said in refused(answer)["message"]


def body_of(value: Any) -> dict[str, Any]:
    return {"content": json.dumps(value), "headers": {"content-type": "application/json"}}


def refused(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which is the client's fault and in OpenAI's shape."""
    assert 400 <= answer.status_code < 500, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert not LABELS.search(error["message"] + str(error["param"])), error
    return error


VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 17, 1.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**40,
    "", " ", "text", "x" * 300, "\ud800", "a\0b", [], [[]], [None], [""], ["a"] * 20, [1, 2], [1.5],
    [{}], {}, {"a": 1}, {"\udfff": 1}, {"type": "text"}, [{"role": "user", "content": "a"}],
    [{"role": 1, "content": []}], [[1, "x"]], {"include_usage": "x"},
]  # fmt: skip
NAMES = [
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "top_k", "seed", "stop", "n", "stream", "stream_options", "logprobs", "top_logprobs", "user",
    "tools", "logit_bias", "unknown", "\ud800", "", "a.b", "input", "endpoint", "metadata",
    "input_file_id", "completion_window",
]  # fmt: skip


@pytest.mark.slow
def test_fuzzed_bodies(client: httpx.Client) -> None:
    """Each is answered or refused for a field that it has, or lacks; none is an error of ours."""
    chance = random.Random(11)
    statuses: dict[int, int] = {}
    for _ in range(500):
        path = chance.choice([CHAT, TEXT, BATCHES])
        body = dict(VALID[path])
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            name = chance.choice(NAMES)
            if chance.random() < 0.15:
                body.pop(name, None)
            else:
                body[name] = chance.choice(VALUES)
        answer = client.post(path, **body_of(body))
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        if answer.status_code != 200:
            error = refused(answer)
            assert is_field(body, error["param"], error["message"]), (body, error)
    assert statuses[400] > 250
    assert statuses[200] > 20


SCHEMAS = [ChatRequest, CompletionRequest, EmbeddingRequest, BatchRequest]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_no_label_of_a_type_is_taken_for_a_field(schema: type[BaseModel]) -> None:
    """Bodies whose values have any shape: what is named is there, or is missing."""
    chance = random.Random(5)
    refusals = 0
    for _ in range(1500):
        names = chance.sample(NAMES, 6)
        body = {name: deep(chance, 3) for name in [*names, *schema.model_fields]}
        try:
            schema.model_validate(body)
        except ValidationError as error:
            refusals += 1
            errors = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
            problem = api_error_of(errors, body)
            assert not LABELS.search(f"{problem} {problem.param}"), (body, problem)
            assert is_field(body, problem.param, str(problem)), (body, problem)
            assert json.dumps(problem.to_json(), ensure_ascii=False).encode()
    assert refusals > 1000


def deep(chance: random.Random, depth: int) -> Any:
    if depth and chance.random() < 0.3:
        return [deep(chance, depth - 1) for _ in range(chance.randrange(4))]
    if depth and chance.random() < 0.2:
        return {chance.choice(NAMES): deep(chance, depth - 1) for _ in range(2)}
    return chance.choice(VALUES)


def is_field(body: dict[str, Any], param: str | None, message: str) -> bool:
    """Whether the body has what `param` names, or lacks it and the message says so."""
    if param is None or param in body or "is missing" in message:
        return True
    if param in ("file_id", "logprobs"):  # named as clients' libraries do
        return True
    value: Any = body
    for step in param.encode().decode("unicode_escape").split("."):
        if isinstance(value, list):
            value = value[int(step)]
        elif step in value or step.encode("utf-8", "backslashreplace").decode() in value:
            value = value[step]
        else:
            return False
    return True


def multipart(*parts: str, end: str = "--cut--\r\n") -> bytes:
    return ("".join(f"--cut\r\n{part}\r\n" for part in parts) + end).encode()


PURPOSE = 'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch'
FILE = 'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}'
UPLOADS = [
    ("cut", multipart(PURPOSE, FILE)[:-30], "ends before its closing boundary"),
    ("cut", multipart(PURPOSE, FILE, end=""), "ends before its closing boundary"),
    ("cut", multipart(PURPOSE)[:-12], "no whole part"),
    ("other", multipart(PURPOSE, FILE), "no multipart body with the boundary"),
    ("cut", b"", "no whole part"),
    ("cut", multipart(PURPOSE), "the upload has no field file"),
    ("cut", multipart(PURPOSE, FILE.replace('; filename="a.jsonl"', "")), "has no filename"),
    ("cut", multipart(FILE), "purpose must be batch, it is missing"),
    ("cut", multipart(PURPOSE.replace("batch", "tune"), FILE), "purpose must be batch, got 'tune'"),
]


@pytest.mark.parametrize(("boundary", "body", "said"), UPLOADS, ids=range(len(UPLOADS)))
def test_uploads(client: httpx.Client, boundary: str, body: bytes, said: str) -> None:
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    assert said in refused(client.post(FILES, content=body, headers=headers))["message"]
    assert client.get(FILES).json()["data"] == []


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("packhorse:8000", "start it with --allow-host packhorse"),
        ("host.docker.internal", "start it with --allow-host host.docker.internal"),
        ("a b", "--allow-host a?b"),
        ("", "no Host header"),
    ],
)
def test_a_name_that_is_not_allowed(client: httpx.Client, host: str, said: str) -> None:
    answer = client.get("/v1/models", headers={"host": host})
    assert answer.status_code == 421
    assert said in refused(answer)["message"]
