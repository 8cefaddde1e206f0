"""Many clients at once, well-behaved and not: no answer lost or doubled, memory flat.

    python benchmarks/serve_soak.py [--connections 1000] [--requests 10000] [--mixed-seconds 60]

A server with the fake engine. First `connections` clients send `requests` in all, each answer
compared with what the engine writes for its prompt; then clients that ask, leave, stall and send
rubbish, for so many seconds, while others go on asking. Memory is that of server and engine. The
last line is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import time
from collections import Counter
from typing import Any

import psutil

from packhorse.data import Prompt, SamplingParams
from packhorse.engines.fake import written
from packhorse.serve.listening import allowed_connections
from serve_throughput import server

TOKENS = 8
BAD = (
    b"\x00\x01rubbish\r\n\r\n",
    b"GET / HTTP/9\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\n\r\n",
)


class Client:
    """One connection to a server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def connect(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)

    def send(self, prompt: str, tokens: int = TOKENS, *, stream: bool = False) -> None:
        body = json.dumps(
            {"model": "fake", "prompt": prompt, "max_tokens": tokens, "stream": stream}
        ).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)

    async def answer(self) -> tuple[int, Any]:
        """Status and document of one answer that is not streamed."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        return int(head.split()[1]), json.loads(await self.reader.readexactly(length))

    def close(self) -> None:
        self.writer.close()


def expected(prompt: str) -> str:
    decoding = SamplingParams(max_new_tokens=TOKENS)
    words = written(Prompt(0, tuple(prompt.encode()), decoding))
    return bytes(token for token, _ in zip(words, range(TOKENS), strict=False)).decode()


async def ask(port: int, prompts: list[str], outcomes: Counter[str], until: float = 0) -> None:
    """Each prompt once, one after the other on one connection; refusals are tried again."""
    client = Client(port)
    await client.connect()
    for prompt in prompts:
        while True:
            client.send(prompt)
            status, document = await client.answer()
            if status not in (429, 503):
                break
            outcomes[f"refused with {status}"] += 1
            await asyncio.sleep(0.2)
        is_right = status == 200 and document["choices"][0]["text"] == expected(prompt)
        outcomes["right" if is_right else f"wrong ({status})"] += 1
        if until and time.monotonic() > until:
            break
    client.close()


async def misbehave(port: int, chance: random.Random, outcomes: Counter[str]) -> None:
    """One client that leaves, stalls or sends rubbish."""
    client = Client(port)
    await client.connect()
    kind = chance.choice(("leaves at once", "leaves in a stream", "stalls", "sends rubbish"))
    try:
        if kind == "sends rubbish":
            client.writer.write(chance.choice(BAD))
            await client.reader.read()
        elif kind == "stalls":
            client.writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n")
            await asyncio.sleep(chance.uniform(0, 12))
        else:
            client.send(f"left {chance.random()}", 150, stream=kind == "leaves in a stream")
            if kind == "leaves in a stream":
                await client.reader.readuntil(b"data: ")
        outcomes[kind] += 1
    except (OSError, EOFError):
        outcomes[f"{kind}, connection lost"] += 1
    client.writer.transport.abort()


async def mixed(port: int, seconds: float, outcomes: Counter[str]) -> None:
    """Clients that behave, each of whose requests must be answered, beside 50 that do not."""
    chance = random.Random(1)  # noqa: S311 - repeatable clients, not secrecy
    until = time.monotonic() + seconds

    async def bad() -> None:
        while time.monotonic() < until:
            await misbehave(port, chance, outcomes)

    good = [ask(port, [f"good {number} {turn}" for turn in range(1 << 14)], outcomes, until)
            for number in range(20)]  # fmt: skip
    await asyncio.gather(*good, *(bad() for _ in range(50)))


def memory_of(port: int) -> int:
    """Bytes of the server that listens on `port` and of its engine."""
    for child in psutil.Process().children():
        if any(each.laddr.port == port for each in child.net_connections() if each.laddr):
            family = [child, *child.children(recursive=True)]
            return sum(each.memory_info().rss for each in family)
    raise AssertionError("the server is not there")


async def soak(port: int, options: argparse.Namespace) -> dict[str, Any]:
    share = options.requests // options.connections

    async def flood(name: str, outcomes: Counter[str]) -> None:
        await asyncio.gather(
            *(ask(port, [f"{name} {client} {turn}" for turn in range(share)], outcomes)
              for client in range(options.connections))
        )  # fmt: skip

    warm: Counter[str] = Counter()
    await flood("warm", warm)
    found: dict[str, Any] = {"warm_up": warm, "memory_after_warm_up": memory_of(port)}
    outcomes: Counter[str] = Counter()
    started = time.monotonic()
    await flood("flood", outcomes)
    found["flood"], found["flood_seconds"] = outcomes, time.monotonic() - started
    found["memory_after_flood"] = memory_of(port)
    behaviour: Counter[str] = Counter()
    await mixed(port, options.mixed_seconds, behaviour)
    await asyncio.sleep(1)
    found["mixed"], found["mixed_seconds"] = behaviour, options.mixed_seconds
    found["memory_after_mixed"] = memory_of(port)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--mixed-seconds", type=float, default=60)
    options = parser.parse_args()
    allowed_connections(options.connections)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > options.connections
    serving = argparse.Namespace(
        model="fake", max_new_tokens=TOKENS, engine_options=["--engine", "fake"]
    )
    with server(serving, delay=2) as address:
        found = asyncio.run(soak(int(address.rsplit(":", 1)[1]), options))
    for name, value in found.items():
        shown = f"{value / 1e6:.1f} MB" if name.startswith("memory") else value
        print(f"{name:22}{dict(value) if isinstance(value, Counter) else shown}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
