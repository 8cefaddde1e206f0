"""A server in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from packhorse.engines.fake import DELAY_VARIABLE, HANG_VARIABLE

PATIENCE_SECONDS = 90.0
FAKE = ("fake", "--engine", "fake", "--max-new-tokens", "24")


@dataclass
class Served:
    """address: http://…; lines: what it wrote on stderr so far."""

    process: subprocess.Popen[str]
    address: str = ""
    lines: list[str] = field(default_factory=list)

    def client(self, **options: Any) -> httpx.Client:
        options = {"trust_env": False, "timeout": PATIENCE_SECONDS, **options}
        return httpx.Client(base_url=self.address, **options)

    def engine(self) -> psutil.Process:
        """The engine's process."""
        for each in psutil.Process(self.process.pid).children():
            if "spawn_main" in " ".join(each.cmdline()):
                return each
        raise AssertionError("the engine's process is not there")

    def metric(self, line: str) -> float:
        """The value of one line of /metrics, 0 where it is not there yet."""
        with self.client() as client:
            for found in client.get("/metrics").text.splitlines():
                if found.startswith(f"{line} "):
                    return float(found.rsplit(" ", 1)[1])
        return 0.0


@contextmanager
def served(
    *arguments: str,
    seconds_per_token: float = 0.0,
    hang_on: str | None = None,
    wrapper: Sequence[str] = (),
    **variables: str,
) -> Iterator[Served]:
    """`packhorse serve ARGUMENTS --port 0`, ready; ended when left. seconds_per_token: of the fake
    engine; hang_on: text in a prompt at which it never gets on. wrapper: words before the
    command. variables: of its environment."""
    environment = {**os.environ, DELAY_VARIABLE: str(seconds_per_token), **variables}
    if hang_on is not None:
        environment[HANG_VARIABLE] = hang_on
    process = subprocess.Popen(
        [*wrapper, sys.executable, "-m", "packhorse", "serve", *arguments, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    server = Served(process)
    written: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reading = threading.Thread(target=_read, args=(server, written), daemon=True)
    reading.start()
    try:
        while not server.address:
            line = written.get(timeout=PATIENCE_SECONDS)
            assert line is not None, "".join(server.lines)
            if "serving " in line:
                server.address = line.split(" at ")[1].strip()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
            reading.join()
            assert process.stderr is not None
            process.stderr.close()


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    """Returns once `condition()` is true; AssertionError if it does not become true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def _read(server: Served, written: queue.SimpleQueue[str | None]) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.lines.append(line)
        written.put(line)
    written.put(None)
