"""Limits on peers, with limits small enough to wait for."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import uvicorn

from packhorse.serve.config import RequestLimits
from packhorse.serve.errors import APIError
from packhorse.serve.http_limits import limited_protocol
from packhorse.serve.middleware import (
    AccessMiddleware,
    AccessPolicy,
    Event,
    Receive,
    Scope,
    Send,
    respond,
)
from packhorse.serve.prometheus import ServerMetrics

SMALL = RequestLimits(
    body_bytes=100,
    upload_bytes=1000,
    upload_bytes_per_second=1000,
    connections=2,
    header_seconds=0.2,
    body_seconds=0.2,
    write_seconds=0.2,
)
BUFFER_BYTES = 16 << 10
"""Of sockets."""


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the length of the body, however it comes."""
    length, event = 0, await receive()
    while True:
        length += len(event["body"])
        if not event.get("more_body"):
            break
        event = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


def exchanged(
    path: str,
    chunks: list[bytes],
    *,
    stalls: bool = False,
    leaves: bool = False,
    pause: float = 0.0,
    application: Any = echo,
) -> tuple[int, bytes, int]:
    """Status and body that a guarded application answers to a body in chunks, and the number of
    chunks that were left. The body then stalls, or its client leaves; pause: before each chunk."""
    sent: list[Event] = []
    coming = list(chunks)

    async def receive() -> Event:
        await asyncio.sleep(pause)
        if coming:
            more = len(coming) > 1 or stalls or leaves
            return {"type": "http.request", "body": coming.pop(0), "more_body": more}
        if leaves:
            return {"type": "http.disconnect"}
        await asyncio.sleep(60)
        raise AssertionError

    async def send(event: Event) -> None:
        sent.append(event)

    kind = b"multipart/form-data" if path == "/v1/files" else b"application/json"
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", kind), (b"transfer-encoding", b"x")],
    }
    rules = AccessPolicy("127.0.0.1", frozenset(), (), SMALL)
    asyncio.run(AccessMiddleware(application, rules, ServerMetrics())(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], len(coming)


@pytest.mark.parametrize(
    ("chunks", "stalls", "status"),
    [
        ([b"a" * 60, b"b" * 40], False, 200),
        ([b"a" * 60, b"b" * 41], False, 413),
        ([b"a" * 60], True, 408),
    ],
)
def test_bodies(chunks: list[bytes], stalls: bool, status: int) -> None:
    found, body, _ = exchanged("/v1/completions", chunks, stalls=stalls)
    assert found == status
    assert body == b"100" if status == 200 else json.loads(body)["error"]["type"]


def test_an_upload_may_be_larger_and_is_passed_on_as_it_comes() -> None:
    assert exchanged("/v1/files", [b"a" * 600, b"b" * 400]) == (200, b"1000", 0)


def code(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


@pytest.mark.parametrize(
    ("chunks", "options", "status", "problem"),
    [
        ([b"a" * 600, b"b" * 401], {}, 413, "body_too_large"),
        ([b"a" * 600], {"leaves": True}, 400, "incomplete_body"),
        ([b"a" * 600], {"stalls": True}, 408, "request_timeout"),
        ([b"a"] * 30, {"pause": 0.05}, 408, "request_timeout"),
    ],
)
def test_uploads_that_are_refused(
    chunks: list[bytes], options: dict[str, Any], status: int, problem: str
) -> None:
    """Too large, not whole, with a pause, or without one but slowly."""
    found, body, _ = exchanged("/v1/files", chunks, **options)
    assert (found, code(body)) == (status, problem)


def test_an_upload_may_take_long_for_its_bytes() -> None:
    assert exchanged("/v1/files", [b"a" * 90] * 8, pause=0.05) == (200, b"720", 0)


def test_an_upload_that_is_refused_early_is_taken_from_its_client() -> None:
    """A connection that is closed on data that was not read loses the answer."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise APIError(507, "no_space", "full")

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await refuse(scope, receive, send)
        except APIError as problem:
            await respond(problem, send)

    status, body, left = exchanged("/v1/files", [b"a" * 50] * 10, application=answered)
    assert (status, code(body), left) == (507, "no_space", 0)


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """128 MB, far more than buffers hold."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(2000):
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def of_bytes(size: int) -> Any:
    """An application that answers with so many, at once."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * size})

    return answer


async def with_server(
    application: Any,
    client: Callable[[int], Awaitable[None]],
    *,
    limits: RequestLimits = SMALL,
    buffer_bytes: int = BUFFER_BYTES,
    connections: set[Any] | None = None,
) -> None:
    """Runs `client` against a server with small limits; it gets the port. buffer_bytes: of the
    server's sockets. connections: gets those that are open."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    config = uvicorn.Config(
        application, http=limited_protocol(limits), lifespan="off", ws="none",
        log_config=None, timeout_graceful_shutdown=1, timeout_keep_alive=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    if connections is not None:
        server.server_state.connections = connections
    serving = asyncio.create_task(server._serve([listener]))
    try:
        await client(listener.getsockname()[1])
    finally:
        server.should_exit = True
        await serving


async def taken_from(connection: socket.socket) -> int:
    """Bytes that are still there, until the connection ends or is reset."""
    taken, loop = 0, asyncio.get_running_loop()
    with suppress(ConnectionResetError):
        while chunk := await loop.sock_recv(connection, 1 << 20):
            taken += len(chunk)
    return taken


def test_a_reader_that_takes_nothing_is_let_go() -> None:
    async def client(port: int) -> None:
        loop = asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setblocking(False)
            await loop.sock_sendall(connection, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await asyncio.sleep(0.8)
            assert await taken_from(connection) < 64 << 20

    asyncio.run(asyncio.wait_for(with_server(endless, client), 20))


@contextmanager
def asking(port: int, *headers: bytes, buffer_bytes: int = BUFFER_BYTES) -> Iterator[socket.socket]:
    """A connection that has asked for `/`. buffer_bytes: for what comes."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        connection.connect(("127.0.0.1", port))
        lines = [b"GET / HTTP/1.1", b"host: localhost", *headers]
        connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
        connection.setblocking(False)
        yield connection


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "sent_bytes", "taken_bytes"),
    [(2_000_000, BUFFER_BYTES, BUFFER_BYTES), (6_000_000, 2 << 20, 2 * BUFFER_BYTES)],
    ids=["small buffers", "a large buffer"],
)
def test_a_reader_that_is_slow_but_steady_gets_all(
    size: int, sent_bytes: int, taken_bytes: int
) -> None:
    """One answer, for which the reader takes several times what he may pause. Where the system's
    buffer is large, it asks for more less often than that."""
    limits = replace(SMALL, write_seconds=0.8)

    async def client(port: int) -> None:
        loop, taken = asyncio.get_running_loop(), 0
        started = loop.time()
        with asking(port, b"connection: close", buffer_bytes=taken_bytes) as connection:
            while chunk := await loop.sock_recv(connection, 65_536):
                taken += len(chunk)
                await asyncio.sleep(0.02)
        assert loop.time() - started > 2.5 * limits.write_seconds
        assert taken > size

    work = with_server(of_bytes(size), client, limits=limits, buffer_bytes=sent_bytes)
    asyncio.run(asyncio.wait_for(work, 60))


@pytest.mark.parametrize("headers", [(), (b"connection: close",)], ids=["kept alive", "closing"])
def test_little_that_is_left_for_a_reader_who_takes_nothing(headers: tuple[bytes, ...]) -> None:
    """Too little for the answer to be paused: it ends, the connection must not stay for ever."""
    connections: set[Any] = set()

    async def client(port: int) -> None:
        with asking(port, *headers):
            while not connections:
                await asyncio.sleep(0.01)
            (protocol,) = connections
            while not protocol.transport.get_write_buffer_size():
                await asyncio.sleep(0.01)
            assert protocol.cycle.response_complete
            while connections:
                await asyncio.sleep(0.05)

    work = with_server(of_bytes(60_000), client, connections=connections)
    asyncio.run(asyncio.wait_for(work, 20))


def test_headers_that_dribble_and_connections_that_are_too_many() -> None:
    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        started = asyncio.get_running_loop().time()
        for piece in (b"GET", b" / HT", b"TP/1.1\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.05)
        assert b" 408 " in await reader.read()
        assert asyncio.get_running_loop().time() - started < 5
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert b" 503 " in await pairs[-1][0].read()
        for _, each in [(reader, writer), *pairs]:
            each.close()

    asyncio.run(asyncio.wait_for(with_server(echo, client), 20))
