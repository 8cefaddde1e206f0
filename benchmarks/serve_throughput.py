"""A server against `packhorse run` on the same rows and engine, and what its delay costs and buys.

    python benchmarks/serve_throughput.py MODEL INPUT [--rows 64] [--delays 0 10 100] [-- OPTIONS]

For the run and for each delay: answers a second when all rows are sent at once (saturation), then
time to first token at a twentieth of that rate (idle: nearly all requests are alone) and at half
of it. Run it on a machine that does nothing else. The last line is one
JSON document. Options after `--` go to `packhorse run` and `packhorse serve` alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packhorse.config import InputConfig
from packhorse.load_test.config import LoadTestConfig
from packhorse.load_test.results import Trial
from packhorse.load_test.runner import load_test

PACKHORSE = [sys.executable, "-m", "packhorse"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("input", type=Path)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--idle-requests", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--delays", type=float, nargs="+", default=[0, 10, 100], metavar="MS")
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


def main() -> None:
    options = arguments()
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
