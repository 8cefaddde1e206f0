"""Connections and the limit of open files; machines that are suspended."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time

import psutil
import pytest

from packhorse.errors import ConfigError
from packhorse.serve.listening import accept_batch_size, allowed_connections, listen
from servers import FAKE, served, wait_until


def in_child(limit: int, wanted: int) -> int | str:
    """What `allowed_connections` says in a process with this limit of open files."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        try:
            said = str(allowed_connections(wanted))
        except ConfigError as error:
            said = f"refused: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as answer:
        text = answer.read()
    return int(text) if text.isdigit() else text


@pytest.mark.parametrize(
    ("limit", "allowed"),
    [(4096, 2048), (2304, 2048), (1024, 768), (512, 256), (300, 150), (40, 20)],
)
def test_connections_follow_the_limit(limit: int, allowed: int) -> None:
    assert in_child(limit, 2048) == allowed


def test_a_limit_below_any_use_is_refused() -> None:
    assert "may open 20 files" in str(in_child(20, 2048))


def test_few_are_accepted_at_once_where_few_fit() -> None:
    assert [accept_batch_size(count) for count in (1, 20, 2048)] == [1, 5, 64]


def test_the_queue_stays_long() -> None:
    """asyncio asks for one that is as long as it accepts connections at once."""
    with listen("127.0.0.1", 0) as listener:
        listener.listen(1)
        peers = [socket.create_connection(listener.getsockname(), timeout=5) for _ in range(60)]
        for peer in peers:
            peer.close()


@pytest.mark.slow
def test_more_connections_than_files() -> None:
    """They cost neither the processor nor the log, and the server answers when they are gone."""
    limit = ["prlimit", "--nofile=40:40"]
    with served(*FAKE, wrapper=limit) as server:
        host, port = server.address.removeprefix("http://").split(":")
        idle = []
        for _ in range(80):
            peer = socket.socket()
            peer.setblocking(False)
            peer.connect_ex((host, int(port)))
            idle.append(peer)
        process = psutil.Process(server.process.pid)
        time.sleep(1)
        before = sum(process.cpu_times()[:2])
        time.sleep(2)
        assert sum(process.cpu_times()[:2]) - before < 0.5
        assert len(server.lines) < 8
        assert not any("Traceback" in line for line in server.lines)
        assert any("at most 20 connections at once" in line for line in server.lines)
        for peer in idle:
            peer.close()
        with server.client() as client:
            body = {"model": "fake", "prompt": "a text", "max_tokens": 2}
            assert client.post("/v1/completions", json=body).status_code == 200


@pytest.mark.slow
def test_time_in_which_nothing_ran_is_no_stall() -> None:
    """All processes are stopped for longer than an engine may give no sign."""
    options = ("--stall-seconds", "1.5")
    with served(*FAKE, *options, seconds_per_token=0.1) as server, server.client() as client:
        assert client.get("/health/ready").status_code == 200
        body = {"model": "fake", "prompt": "a text", "max_tokens": 24, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            engine = server.engine()
            for _ in range(2):
                engine.suspend()
                server.process.send_signal(signal.SIGSTOP)
                time.sleep(3)
                server.process.send_signal(signal.SIGCONT)
                engine.resume()
                time.sleep(0.2)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.metric("packhorse_engine_stalls_total") == 0
        engine.suspend()
        with client.stream("POST", "/v1/completions", json=body) as answer:
            wait_until(lambda: server.metric("packhorse_engine_stalls_total") == 1)
