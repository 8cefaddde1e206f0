"""Load tests: arrivals and figures as tables, and one against a real server."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from packhorse.cli import main
from packhorse.data import Request
from packhorse.jobs.host_names import is_this_machine
from packhorse.load_test.client import (
    RequestResult,
    client_for,
    poisson_arrivals,
    request_body,
    send_all,
)
from packhorse.load_test.config import Goals
from packhorse.load_test.results import knee, summarize
from servers import Served, served


def test_arrivals_are_a_poisson_process_and_repeat() -> None:
    moments = poisson_arrivals(4.0, 4001, seed=3)
    gaps = [after - before for before, after in pairwise(moments)]
    assert moments[0] == 0.0
    assert mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert mean(gap**2 for gap in gaps) == pytest.approx(2 * 0.25**2, rel=0.15)
    assert moments == poisson_arrivals(4.0, 4001, seed=3)
    assert moments != poisson_arrivals(4.0, 4001, seed=4)
    assert poisson_arrivals(math.inf, 3, seed=0) == [0.0, 0.0, 0.0]


CHAT = ({"role": "user", "content": "two"},)
USER = [{"role": "user", "content": "one"}]
SYSTEM = {"role": "system", "content": "be brief"}


@pytest.mark.parametrize(
    ("row", "options", "path", "asked"),
    [
        ({"content": "one"}, {}, "chat/completions", {"messages": USER}),
        ({"content": "one"}, {"has_chat_template": False}, "completions", {"prompt": "one"}),
        ({"content": "one", "bare": True}, {}, "completions", {"prompt": "one"}),
        (
            {"content": CHAT},
            {"has_chat_template": False},
            "chat/completions",
            {"messages": list(CHAT)},
        ),
        (
            {"content": "one"},
            {"system": "be brief"},
            "chat/completions",
            {"messages": [SYSTEM, *USER]},
        ),
        (
            {"content": (SYSTEM, *CHAT)},
            {"system": "another"},
            "chat/completions",
            {"messages": [SYSTEM, *CHAT]},
        ),
        (
            {"content": CHAT, "options": {"top_log_probs": 3, "max_new_tokens": 9}},
            {},
            "chat/completions",
            {"messages": list(CHAT), "logprobs": True, "top_logprobs": 3, "max_tokens": 9},
        ),
        (
            {"content": "one", "bare": True, "options": {"top_log_probs": 0}},
            {},
            "completions",
            {"prompt": "one", "logprobs": 0},
        ),
    ],
    ids=str,
)
def test_rows_ask_for_what_a_run_would_do(
    row: dict[str, Any], options: dict[str, Any], path: str, asked: dict[str, Any]
) -> None:
    request = Request(**{"index": 0, "id": "0", "line": 1, "options": {}, **row})
    found, body = request_body(request, "m", None, **options)
    assert found == f"/v1/{path}"
    shared = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    assert body == {**shared, **asked}


def reply(
    due: float, first: float, finished: float, tokens: int | None = 11, late: float = 0
) -> RequestResult:
    return RequestResult(due, due + late, first, finished, tokens, "")


def test_latency_counts_from_when_a_request_was_due() -> None:
    replies = [
        reply(0, 1, 2, late=0.5),
        reply(1, 4, 6),
        RequestResult(2, 2, None, None, 0, "503 full"),
    ]
    trial = summarize(1.0, replies, Goals(first_token=1.5))
    assert (trial.answered, trial.good, trial.errors) == (2, 1, {"503 full": 1})
    assert trial.first_token.p50 == 2.0
    assert trial.answer.p50 == 3.5
    assert trial.per_token.p50 == pytest.approx(0.15)
    assert trial.answers_per_second == pytest.approx(2 / 6)
    assert trial.goodput == pytest.approx(1 / 6)
    assert (trial.late, trial.tokens, trial.arrival_rate) == (0.5, 22, 1.0)
    assert trial.answer.p99 is None


@pytest.mark.parametrize(
    ("tokens", "first", "good"),
    [(11, 1.0, 1), (12, 0.0, 0), (None, 1.0, 0), (1, 1.0, 1), (0, 2.0, 1)],
)
def test_a_goal_for_what_was_not_measured_is_not_met(
    tokens: int | None, first: float, good: int
) -> None:
    """One token has no time between tokens; how many there were may not have been said."""
    trial = summarize(1.0, [reply(0, first, 2.0, tokens)], Goals(per_token=0.1))
    assert (trial.good, trial.tokens) == (good, tokens)
    assert trial.tokens_per_second == (None if tokens is None else tokens / 2.0)
    unseen = summarize(1.0, [RequestResult(0, 0, None, 2.0, 5, "")], Goals(first_token=9.0))
    assert unseen.good == 0


def test_the_knee_is_the_last_rate_that_is_kept_up_with() -> None:
    def at(rate: float, seconds: float, goals: Goals) -> object:
        replies = [reply(0, seconds / 2, seconds), reply(1, 1 + seconds / 2, 1 + seconds)]
        return summarize(rate, replies, goals)

    for goals, rates in ((Goals(), [1, 2, None]), (Goals(answer=0.5), [None, None, None])):
        found = [
            knee([at(1, 1.0, goals), at(2, second, goals)], goals)  # type: ignore[list-item]
            for second in (9.0, 2.9)
        ] + [knee([], goals)]
        assert [each.rate if each else None for each in found] == rates


def test_a_server_under_load(
    fake_server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    rows = [{"prompt": "one"}, {"messages": list(CHAT)}, {"prompt": ""}]
    source.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--rate", "50", "inf", "--requests", "20", "--goal-answer-ms", "60000"]
    output = tmp_path / "report"
    assert main(["load-test", fake_server.address, str(source), "-o", str(output), *arguments]) == 0
    assert "keeps up with inf" in capsys.readouterr().out
    report = json.loads((output / "report.json").read_text())
    assert [trial["answered"] for trial in report["trials"]] == [20, 20]
    assert [trial["good"] for trial in report["trials"]] == [20, 20]
    assert report["trials"][0]["tokens"] == 20 * 24
    assert (report["rows"], report["model"]) == (2, "fake")
    assert "| rate |" in (output / "report.md").read_text()


def test_a_server_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.txt"
    source.write_text("a prompt\n")
    assert main(["load-test", "http://127.0.0.1:1", str(source)]) == 2
    assert "no server to be tested answers" in capsys.readouterr().err
    assert main(["load-test", "http://127.0.0.1:1", str(source), "--rate", "0"]) == 2


def test_rows_of_a_batch_file_that_ask_for_log_probabilities(
    fake_server: Served, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "report"
    bodies = [
        ("/v1/chat/completions", {"messages": list(CHAT), "logprobs": True, "top_logprobs": 2}),
        ("/v1/completions", {"prompt": "one", "logprobs": 2}),
    ]
    lines = [
        json.dumps({"custom_id": url, "method": "POST", "url": url, "body": {"model": "m", **body}})
        for url, body in bodies
    ]
    source.write_text("\n".join(lines))
    arguments = [fake_server.address, str(source), "--requests", "4", "--rate", "inf"]
    assert main(["load-test", *arguments, "-o", str(output)]) == 0
    (trial,) = json.loads((output / "report.json").read_text())["trials"]
    assert (trial["answered"], trial["errors"]) == (4, {})


@pytest.mark.slow
def test_plain_prompts_for_a_model_without_a_chat_template(
    tmp_path: Path, tiny: Callable[[str], Path]
) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "report"
    source.write_text("the horse\n")
    options = ("--engine", "transformers", "--max-new-tokens", "3")
    with served(str(tiny("gpt2")), *options) as server:
        arguments = [server.address, str(source), "--requests", "2", "--rate", "inf"]
        assert main(["load-test", *arguments, "-o", str(output)]) == 0
    (trial,) = json.loads((output / "report.json").read_text())["trials"]
    assert (trial["answered"], trial["errors"]) == (2, {})


@dataclass
class Strange:
    """A server that answers a path with given bytes. connections: made to it so far."""

    answers: dict[str, bytes]
    connections: list[asyncio.StreamWriter] = field(default_factory=list)
    address: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().lower().splitlines()
                sizes = [line for line in lines if line.startswith("content-length:")]
                await reader.readexactly(int(sizes[0].split(":")[1]) if sizes else 0)
                body = self.answers[lines[0].split()[1]]
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


@asynccontextmanager
async def strange(answers: dict[str, bytes]) -> AsyncIterator[Strange]:
    found = Strange(answers)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        try:
            yield found
        finally:
            for writer in found.connections:
                writer.close()
                await writer.wait_closed()


END = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"data: {no JSON\n\n" + END, "malformed_stream"),
        (b"data: null\n\n" + END, "malformed_stream"),
        (b"data: [1]\n\n" + END, "malformed_stream"),
        (b"data: " + b"[" * 200_000 + b"\n\n", "malformed_stream"),
        (b'data: {"error": "text"}\n\n' + END, "malformed_stream"),
        (b'data: {"error": {}}\n\n' + END, "malformed_stream"),
        (b'data: {"choices": [{"delta": null}]}\n\n' + END, "malformed_stream"),
        (b'data: {"usage": {}, "choices": null}\n\n' + END, "malformed_stream"),
        (b'data: {"usage": {"completion_tokens": "5"}}\n\n' + END, "malformed_stream"),
        (b'data: {"usage": {"completion_tokens": -5}}\n\n' + END, "malformed_stream"),
        (b'data: {"error": {"code": "full"}}\n\n', "full"),
        (b'data: {"choices": []}\n\n', "incomplete_stream"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_reply_that_makes_no_sense_is_counted(stream: bytes, error: str) -> None:
    """The others are not lost with it."""
    good = b'data: {"choices": [{"text": "a"}]}\n\ndata: {"usage": {"completion_tokens": 1}}\n\n'

    async def run() -> list[RequestResult]:
        async with (
            strange({"/bad": stream, "/good": good + END}) as server,
            client_for(server.address, None, 20.0) as client,
        ):
            return await send_all(client, [("/bad", {}), ("/good", {})], [0.0, 0.0])

    bad, other = asyncio.run(run())
    assert (bad.error, bad.finished) == (error, None)
    assert (other.error, other.tokens) == ("", 1)


def test_an_idle_connection_is_not_used_when_a_server_may_just_close_it() -> None:
    async def run(pause: float) -> int:
        async with (
            strange({"/": b"{}"}) as server,
            client_for(server.address, None, 20.0) as client,
        ):
            await client.get("/")
            await asyncio.sleep(pause)
            await client.get("/")
            return len(server.connections)

    assert asyncio.run(run(0.0)) == 1
    assert asyncio.run(run(2.5)) == 2


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def with_proxies(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5h://127.0.0.1:9", "horse://a"])
def test_this_machine_is_reached_without_a_proxy(
    fake_server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, proxy: str
) -> None:
    with_proxies(monkeypatch, **{name: proxy})
    rows = tmp_path / "rows.txt"
    rows.write_text("one\ntwo\n")
    arguments = [str(rows), "--rate", "inf", "--requests", "2", "--max-new-tokens", "2"]
    address = fake_server.address.replace("127.0.0.1", "localhost")
    assert main(["load-test", address, *arguments]) == 0


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HTTP_PROXY": "http://u:secret@127.0.0.1:9"}, "through the proxy http://127.0.0.1:9"),
        ({"ALL_PROXY": "socks5h://127.0.0.1:9"}, "needs the package socksio"),
        ({"ALL_PROXY": "horse://a"}, "the proxy horse://a cannot be used"),
        ({"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "server.invalid"}, "answers at http://"),
    ],
)
def test_a_proxy_that_fails_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    said: str,
) -> None:
    with_proxies(monkeypatch, **variables)
    rows = tmp_path / "rows.txt"
    rows.write_text("one\n")
    assert main(["load-test", "http://server.invalid:8000", str(rows), "--requests", "1"]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert "NO_PROXY=server.invalid" in errors or "NO_PROXY" in variables
    assert "secret" not in errors


@pytest.mark.parametrize("url", ["http://[::1", "http://\0"])
def test_an_address_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    rows = tmp_path / "rows.txt"
    rows.write_text("one\n")
    assert main(["load-test", url, str(rows)]) == 2
    assert "is no address of a server" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("api.localhost", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),  # noqa: S104
        ("128.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_what_is_this_machine(host: str, is_own: bool) -> None:
    assert is_this_machine(host) == is_own
