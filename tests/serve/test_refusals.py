"""Bad requests: each is a 4xx in OpenAI's shape, costs the engine nothing and tells no secrets."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from packhorse.serve.schemas import ChatRequest, CompletionRequest, EmbeddingRequest
from servers import FAKE, Served, served

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": HELLO, **fields}


def text(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "prompt": "hello", **fields}


PART_OF_PAIR = b'{"role":"user","content":[{"type":"text","text":"\\ud800"}]}'
BAD_BODIES = [
    ("chat", b"", 400),
    ("chat", b"not json", 400),
    ("chat", b"[1, 2]", 400),
    ("chat", b"null", 400),
    ("chat", b'"text"', 400),
    ("chat", b'{"model": "fake"', 400),
    ("chat", b"\xff\xfe\x00", 400),
    ("chat", b"[" * 100_000, 400),
    ("chat", b'{"model": "fake", "messages": ' + b'[{"a":' * 50_000 + b"1" + b"}]" * 50_000, 400),
    ("chat", b'{"model":"fake","messages":[{"role":"user","content":"\\ud800"}]}', 400),
    ("chat", b'{"model":"fake","messages":[' + PART_OF_PAIR + b"]}", 400),
    ("chat", b'{"model":"fake","messages":[{"role":"user","content":"a","b":"\\udfff"}]}', 400),
    ("chat", b'{"model":"fake","messages":[{"role":"user","content":"a"}],"temperature":NaN}', 400),
    ("chat", b'{"model":"fake","messages":[{"role":"user","content":"a"}],"top_p":Infinity}', 400),
    ("chat", b'{"model":"fake","messages":[{"role":"user","content":"a"}],"n":1e999}', 400),
    ("chat", {}, 400),
    ("chat", {"messages": HELLO}, 400),
    ("chat", chat(model="another"), 404),
    ("chat", chat(model=7), 400),
    ("chat", chat(model="x" * 1000), 400),
    ("chat", chat(messages=None), 400),
    ("chat", chat(messages=[]), 400),
    ("chat", chat(messages="hello"), 400),
    ("chat", chat(messages=[7]), 400),
    ("chat", chat(messages=[{"content": "no role"}]), 400),
    ("chat", chat(messages=[{"role": "user"}]), 400),
    ("chat", chat(messages=[{"role": "user", "content": " "}]), 400),
    ("chat", chat(messages=[{"role": "user", "content": 7}]), 400),
    ("chat", chat(messages=[{"role": "", "content": "a"}]), 400),
    ("chat", chat(messages=[{"role": "u" * 99, "content": "a"}]), 400),
    ("chat", chat(messages=HELLO * 1025), 400),
    ("chat", chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400),
    ("chat", chat(max_tokens=True), 400),
    ("chat", chat(max_tokens=-5), 400),
    ("chat", chat(max_tokens=1.5), 400),
    ("chat", chat(max_tokens="9"), 400),
    ("chat", chat(max_tokens=2**31), 400),
    ("chat", chat(max_tokens=10**6), 400),
    ("chat", chat(max_tokens=5, max_completion_tokens=6), 400),
    ("chat", chat(temperature=-0.1), 400),
    ("chat", chat(temperature=101), 400),
    ("chat", chat(temperature="hot"), 400),
    ("chat", chat(top_p=-0.1), 400),
    ("chat", chat(top_p=1.01), 400),
    ("chat", chat(top_k=-2), 400),
    ("chat", chat(seed=-2), 400),
    ("chat", chat(seed=2**63), 400),
    ("chat", chat(n=0), 400),
    ("chat", chat(n=9), 400),
    ("chat", chat(n=True), 400),
    ("chat", chat(stop=""), 400),
    ("chat", chat(stop=["a"] * 17), 400),
    ("chat", chat(stop=[1]), 400),
    ("chat", chat(stop="x" * 257), 400),
    ("chat", chat(stream="yes"), 400),
    ("chat", chat(stream_options={"include_usage": True}), 400),
    ("chat", chat(logprobs=1), 400),
    ("chat", chat(top_logprobs=1), 400),
    ("chat", chat(logprobs=True, top_logprobs=21), 400),
    ("chat", chat(tools=[{"type": "function"}]), 400),
    ("chat", chat(response_format={"type": "json_object"}), 400),
    ("chat", chat(presence_penalty=2.5), 400),
    ("chat", chat(logit_bias={"5": 200}), 400),
    ("chat", chat(chat_template="{{ messages }}"), 400),
    ("chat", chat(chat_template_kwargs={"messages": []}), 400),
    ("chat", chat(no_such_option=1), 400),
    ("text", text(prompt=None), 400),
    ("text", text(prompt=""), 400),
    ("text", text(prompt=[]), 400),
    ("text", text(prompt=[1, "a", 3]), 400),
    ("text", text(prompt=[1, 256]), 400),
    ("text", text(prompt=[[1], [-2]]), 400),
    ("text", text(prompt=["a"] * 65), 400),
    ("text", text(prompt=["a", " "]), 400),
    ("text", text(prompt="a " * 20_000), 400),
    ("text", text(logprobs=True), 400),
    ("text", text(top_logprobs=5), 400),
    ("text", text(logprobs=21), 400),
    ("text", text(echo=True, logprobs=1, stream=True), 400),
    ("text", text(best_of=2), 400),
    ("text", text(suffix="end"), 400),
    ("text", text(messages=HELLO), 400),
    ("text", text(prompt="x" * (5 << 20)), 413),
]  # fmt: skip


def is_openai_error(body: Any) -> bool:
    error = body["error"]
    return (
        set(body) == {"error"}
        and set(error) == {"message", "type", "param", "code"}
        and all(
            isinstance(error[name], str) and error[name] for name in ("message", "type", "code")
        )
        and "Traceback" not in error["message"]
        and "/" not in error["message"].replace("application/json", "").replace("HTTP/1.1", "")
    )


@pytest.mark.parametrize(("path", "body", "status"), BAD_BODIES)
def test_bad_bodies(fake_server: Served, path: str, body: Any, status: int) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = CHAT if path == "chat" else TEXT
    with fake_server.client() as client:
        answer = client.post(url, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert is_openai_error(answer.json()), answer.text


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (CompletionRequest, {"prompt": [[{}] * 10_000]}),
        (CompletionRequest, {"prompt": [{}] * 10_000}),
        (ChatRequest, {"messages": [{}] * 10_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 256}] * 100}),
        (EmbeddingRequest, {"input": [["x"] * 10_000] * 2}),
        (EmbeddingRequest, {"input": {}, **{f"field{number}": 1 for number in range(10_000)}}),
    ],
)
def test_a_body_full_of_faults_is_left_at_the_first(
    schema: type[BaseModel], body: dict[str, Any]
) -> None:
    """Each fault that is noted takes a kilobyte, and a body has room for a million."""
    with pytest.raises(ValidationError) as refused:
        schema.model_validate({"model": "fake", **body})
    assert refused.value.error_count() < 10


REQUESTS: list[tuple[str, str, dict[str, str], int]] = [
    ("GET", CHAT, {}, 405),
    ("PUT", CHAT, {}, 405),
    ("GET", "/absent", {}, 404),
    ("GET", "/v1/models/absent", {}, 404),
    ("GET", "/../../etc/passwd", {}, 404),
    ("POST", "/v1/embeddings", {}, 404),
    ("GET", "/v1/models", {"host": "evil.example"}, 421),
    ("GET", "/v1/models", {"host": "localhost.evil.example"}, 421),
    ("GET", "/v1/models", {"host": ""}, 421),
    ("GET", "/v1/models", {"origin": "http://evil.example"}, 403),
    ("GET", "/v1/models", {"origin": "null"}, 403),
    ("OPTIONS", CHAT, {"origin": "http://evil.example"}, 403),
    ("POST", CHAT, {"content-type": "text/plain"}, 415),
    ("POST", CHAT, {"content-type": "application/x-www-form-urlencoded"}, 415),
    ("GET", "/v1/models", {"x-long": "a" * 20_000}, 431),
]


@pytest.mark.parametrize(("method", "path", "headers", "status"), REQUESTS)
def test_bad_requests(
    fake_server: Served, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    sent = {"content-type": "application/json", **headers}
    body = b"{}" if method == "POST" else b""
    with fake_server.client() as client:
        answer = client.request(method, path, content=body, headers=sent)
    assert answer.status_code == status
    assert is_openai_error(answer.json())
    assert "access-control-allow-origin" not in answer.headers


RAW = [
    (b"NONSENSE\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nhost localhost\r\n\r\n", 400),
    (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: 99999999999\r\n\r\n",
        413,
    ),
    (b"GET /" + b"a" * 30_000 + b" HTTP/1.1\r\n\r\n", 400),
]


@pytest.mark.parametrize(("sent", "status"), RAW)
def test_what_is_no_http(fake_server: Served, sent: bytes, status: int) -> None:
    with connected(fake_server) as connection:
        connection.sendall(sent + b"\r\n\r\n")
        assert_refused(connection, status)


def test_none_of_it_reached_the_engine(fake_server: Served) -> None:
    with fake_server.client() as client:
        assert client.post(CHAT, json=chat(max_tokens=1)).status_code == 200
        assert client.get("/health/ready").status_code == 200
    assert not any("Traceback" in line for line in fake_server.lines)


def connected(server: Served) -> socket.socket:
    host, port = server.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def assert_refused(connection: socket.socket, status: int) -> None:
    received = b""
    while chunk := connection.recv(1 << 16):
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert is_openai_error(json.loads(body))


@pytest.fixture(scope="module")
def locked_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Wants one of two keys, and senders that are not slow."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("first-key\n\nsecond-key\n")
    arguments = ("--api-key-file", str(keys), "--allow-host", "models.example")
    with served(*FAKE, *arguments) as server:
        yield server


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("first-key", 401),
        ("Bearer wrong", 401),
        ("Bearer", 401),
        ("Basic first-key", 401),
        ("Bearer first-key", 200),
        ("bearer second-key", 200),
    ],
)
def test_keys(locked_server: Served, header: str | None, status: int) -> None:
    with locked_server.client() as client:
        headers = {} if header is None else {"authorization": header}
        answer = client.get("/v1/models", headers=headers)
        assert answer.status_code == status
        assert client.get("/health/live").status_code == 200
        if status == 401:
            assert is_openai_error(answer.json())
            assert answer.headers["www-authenticate"] == "Bearer"


def test_allowed_names(locked_server: Served) -> None:
    with locked_server.client() as client:
        for host in ("models.example", "MODELS.example:8000", "[::1]:8000", "192.168.1.5"):
            assert client.get("/health/live", headers={"host": host}).status_code == 200


def test_an_idle_connection_costs_no_other_its_answer(fake_server: Served) -> None:
    idle = [connected(fake_server) for _ in range(50)]
    try:
        with fake_server.client() as client:
            assert client.post(TEXT, json=text(max_tokens=2)).status_code == 200
    finally:
        for connection in idle:
            connection.close()


def test_a_file_of_keys_must_hold_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from packhorse.cli import main

    empty = tmp_path / "keys"
    empty.write_text("\n")
    for arguments in (["--api-key-file", str(empty)], ["--host", "0.0.0.0"]):  # noqa: S104
        assert main(["serve", "fake", "--engine", "fake", "--port", "0", *arguments]) == 2
    assert "contains no key" in (errors := capsys.readouterr().err)
    assert "no API key is asked for" in errors
