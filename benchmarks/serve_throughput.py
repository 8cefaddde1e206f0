"""A server against `packhorse run` on the same rows and engine, and what its delay costs and buys.

    python benchmarks/serve_throughput.py MODEL INPUT [--rows 64] [--delays 0 10 100] [-- OPTIONS]
    python benchmarks/serve_throughput.py MODEL INPUT --clients 1 4 16 64 [--peers NAME=PYTHON ...]
        [--requests 4] [--repeats 3] [--work FOLDER] [-- OPTIONS]

For the run and for each delay: answers a second when all rows are sent at once (saturation), then
time to first token at a twentieth of that rate (idle: nearly all requests are alone) and at half
of it. Run it on a machine that does nothing else. The last line is one
JSON document. Options after `--` go to `packhorse run` and `packhorse serve` alike.

--clients: clients that each send --requests requests one after the other, to packhorse and to each
peer in turn: time to first token and generated tokens per second. Every answer has exactly
--max-new-tokens tokens. engines.py says what --work holds, peers.py how to set up a peer. vLLM is
its own OpenAI server; openvino-ir and openvino-q8_0 are the thin stand-in of peers.py, since
OpenVINO Model Server is no PyPI package. llama.cpp is left out: the server of llama-cpp-python
answers one request at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from engines import Workspace, end_group, range_of
from packhorse.config import InputConfig
from packhorse.data import Request
from packhorse.inputs import read_rows
from packhorse.load_test.client import (
    RequestResult,
    client_for,
    request_body,
    send_all,
    served_model,
)
from packhorse.load_test.config import LoadTestConfig
from packhorse.load_test.results import Trial
from packhorse.load_test.runner import load_test
from packhorse.profiling.run_metrics import quantile
from peers import PEERS, environment_of

PACKHORSE = [sys.executable, "-m", "packhorse"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("input", type=Path)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--idle-requests", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--delays", type=float, nargs="+", default=[0, 10, 100], metavar="MS")
    parser.add_argument("--clients", type=int, nargs="+", default=[], metavar="N")
    parser.add_argument("--requests", type=int, default=4, help="requests per client (default: 4)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--work", type=Path, metavar="FOLDER",
                        default=Path(tempfile.gettempdir()) / "packhorse-engines")  # fmt: skip
    given, engine_options = sys.argv[1:], []
    if "--" in given:
        place = given.index("--")
        given, engine_options = given[:place], given[place + 1 :]
    parser.set_defaults(engine_options=engine_options)
    return parser.parse_args(given)


def run_rows_per_second(options: argparse.Namespace) -> float:
    """Of `packhorse run`, generation only."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *PACKHORSE, "run", options.model, str(options.input), "-o", f"{folder}/out.jsonl",
            "--json", "--limit", str(options.rows), "--no-deduplicate",
            "--max-new-tokens", str(options.max_new_tokens), *options.engine_options,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["session"]["rows_per_second"])


@contextmanager
def server(options: argparse.Namespace, delay: float) -> Iterator[str]:
    """The address of one that is ready."""
    command = [
        *PACKHORSE, "serve", options.model, "--port", "0", "--max-delay-ms", str(delay),
        "--max-new-tokens", str(options.max_new_tokens), *options.engine_options,
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            print(line, end="", file=sys.stderr)
            if " at http" in line:
                yield line.split(" at ")[1].strip()
                return
        sys.exit("the server did not start")
    finally:
        process.terminate()
        process.communicate()


def trial(address: str, options: argparse.Namespace, rate: float, requests: int) -> Trial:
    reading = InputConfig(limit=options.rows)
    config = LoadTestConfig(
        address, options.input, (rate,), requests, options.max_new_tokens, reading=reading
    )
    return load_test(config).trials[0]


@contextmanager
def peer_server(workspace: Workspace, peer: str) -> Iterator[str]:
    """The address of a peer's server that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kind = PEERS[peer]()
    setting = {**kind.screened[-1], **next(iter(kind.settings.values()))}
    target = workspace.target(peer)
    environment = {**os.environ, **environment_of(peer, workspace.peers[peer])}
    if peer == "vllm":
        command = [workspace.peers[peer], "-m", "vllm.entrypoints.openai.api_server", "--model",
                   str(target), "--host", "127.0.0.1", "--port", str(port), "--max-model-len",
                   "4096", "--dtype", "bfloat16"]  # fmt: skip
    else:
        command = workspace.command("serve", peer, target, port, json.dumps(setting))
    process = subprocess.Popen(command, stdout=sys.stderr, env=environment, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(address, process)
        yield address
    finally:
        end_group(process)


def wait_until_ready(address: str, process: subprocess.Popen[bytes], seconds: float = 900) -> None:
    import httpx

    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{address}/v1/models", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    sys.exit("the server did not start")


async def closed_loop(
    address: str, options: argparse.Namespace, clients: int, skipped: int
) -> tuple[float, list[RequestResult]]:
    """Return the seconds and results of clients that send one request after the other.

    Args:
        address: The server.
        options: Of the command.
        clients: Clients at the same time.
        skipped: Rows to leave out, so that no trial repeats a prompt of an earlier one.
    """
    wanted = clients * options.requests
    rows = [row for row in read_rows(options.input, InputConfig()) if isinstance(row, Request)]
    rows = [rows[(skipped + number) % len(rows)] for number in range(wanted)]
    results: list[RequestResult] = []
    async with client_for(address, None, 3600) as client:
        model = await served_model(client)
        bodies = [request_body(row, model, options.max_new_tokens) for row in rows]

        async def send(number: int) -> None:
            for body in bodies[number::clients]:
                results.extend(await send_all(client, [body], [0.0]))

        started = time.monotonic()
        await asyncio.gather(*(send(number) for number in range(clients)))
        seconds = time.monotonic() - started
    for result in results:
        if result.tokens != options.max_new_tokens:
            sys.exit(f"an answer has {result.tokens} tokens, error {result.error!r}")
    return seconds, results


def compare_servers(options: argparse.Namespace) -> None:
    workspace = Workspace(options.model, options.work, options.peers)
    options.model = str(workspace.checkpoint)
    for peer in workspace.peers:
        workspace.export(peer)
    names = ["packhorse", *workspace.peers]
    found: dict[str, dict[int, list[dict[str, float]]]] = {
        name: {clients: [] for clients in options.clients} for name in names
    }
    for _ in range(options.repeats):
        for name in names:
            serving: AbstractContextManager[str] = (
                server(options, 0) if name == "packhorse" else peer_server(workspace, name)
            )
            with serving as address:
                asyncio.run(closed_loop(address, options, 2, 0))  # warm up
                skipped = 2 * options.requests
                for clients in options.clients:
                    seconds, results = asyncio.run(closed_loop(address, options, clients, skipped))
                    skipped += clients * options.requests
                    firsts = [each.first_token for each in results if each.first_token is not None]
                    figures = {
                        "tokens_per_second": len(results) * options.max_new_tokens / seconds,
                        "p50": quantile(sorted(firsts), 0.5) or 0.0,
                        "p95": quantile(sorted(firsts), 0.95) or 0.0,
                    }
                    found[name][clients].append(figures)
                    print(f"{name}, {clients} clients: {figures}", file=sys.stderr, flush=True)
    print(f"{'':16}{'clients':>8}{'tokens/s':>24}{'first token p50 s':>24}{'p95 s':>24}")
    for name, clients in ((name, clients) for name in names for clients in options.clients):
        trials = found[name][clients]
        cells = [range_of([trial[key] for trial in trials], digits)
                 for key, digits in (("tokens_per_second", 1), ("p50", 3), ("p95", 3))]  # fmt: skip
        print(f"{name:16}{clients:8}" + "".join(f"{cell:>24}" for cell in cells))
    print(json.dumps(found))


def main() -> None:
    options = arguments()
    if options.clients:
        compare_servers(options)
        return
    run = run_rows_per_second(options)
    print(f"packhorse run: {run:.2f} rows/s")
    print(f"{'delay ms':>9}{'answers/s':>11}{'of run':>8}{'idle TTFT p95':>15}"
          f"{'half rate: TTFT p50':>21}{'p95':>8}{'answer p95':>12}")  # fmt: skip
    results: list[dict[str, Any]] = []
    for delay in options.delays:
        with server(options, delay) as address:
            trial(address, options, float("inf"), 8)  # warm up
            full = trial(address, options, float("inf"), options.rows)
            rate = full.answers_per_second
            idle = trial(address, options, rate / 20, options.idle_requests)
            half = trial(address, options, rate / 2, options.rows)
        print(f"{delay:9g}{rate:11.2f}{rate / run:8.0%}{idle.first_token.p95:15.3f}"
              f"{half.first_token.p50:21.3f}{half.first_token.p95:8.3f}"
              f"{half.answer.p95:12.2f}", flush=True)  # fmt: skip
        found = {"saturated": full, "idle": idle, "half": half}
        results.append(
            {"delay_ms": delay, **{name: each.to_json() for name, each in found.items()}}
        )
    print(json.dumps({"run_rows_per_second": run, "delays": results}))


if __name__ == "__main__":
    main()
