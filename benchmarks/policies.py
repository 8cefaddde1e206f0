"""Every batching policy on every engine: the same rows, interleaved, each run in its own process.

    python benchmarks/policies.py MODEL INPUT [--rows 64] [--repeats 3] [--engines ...]

Prints a table of medians (smallest to largest in brackets) and, as its last line, one JSON document
with every raw value. Seconds are of generation only: loading and reading are left out. Two cores
wander: compare figures of one run of this script, not across runs. "same" counts the rows whose
text is that of `single` on the same engine.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from packhorse.batching import POLICIES
from packhorse.batching.policies import CONTINUOUS

ENGINES = ("transformers:float32", "ctranslate2:int8")
BATCHED = [name for name in POLICIES if name != CONTINUOUS]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("input")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), metavar="ENGINE:FORMAT")
    parser.add_argument("--batchings", nargs="+", default=BATCHED, choices=BATCHED)
    return parser.parse_args()


def timed_run(options: argparse.Namespace, engine: str, policy: str) -> dict[str, Any]:
    """One `packhorse run` in a fresh process; its figures."""
    name, quantization = engine.split(":")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "packhorse", "run", options.model, options.input,
            "-o", f"{folder}/out.jsonl", "--json", "--limit", str(options.rows),
            "--engine", name, "--quantization", quantization, "--batching", policy,
            "--batch-size", str(options.batch_size),
            "--max-new-tokens", str(options.max_new_tokens),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 3):
            sys.exit(f"{engine} {policy} failed with {done.returncode}:\n{done.stderr}")
        rows = [json.loads(line) for line in Path(f"{folder}/out.jsonl").read_text().splitlines()]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report["counts"]["rows"] == len(rows)
    return {**report, "texts": [row.get("text") for row in rows]}


def rows_as_single(
    reports: dict[tuple[str, str], list[dict[str, Any]]], engine: str, policy: str
) -> str:
    """How many rows answer as `single` does; a dash where `single` was not run."""
    if (engine, "single") not in reports:
        return "-"
    alone, texts = reports[engine, "single"][0]["texts"], reports[engine, policy][0]["texts"]
    return f"{sum(a == b for a, b in zip(alone, texts, strict=True))}/{len(texts)}"


def spread(values: list[float]) -> str:
    return f"{median(values):6.1f} ({min(values):.1f}-{max(values):.1f})"


def main() -> None:
    options = arguments()
    trials = [(engine, policy) for engine in options.engines for policy in options.batchings]
    reports: dict[tuple[str, str], list[dict[str, Any]]] = {trial: [] for trial in trials}
    started = time.monotonic()
    for repeat in range(options.repeats):
        for number, trial in enumerate(trials):
            reports[trial].append(timed_run(options, *trial))
            done = repeat * len(trials) + number + 1
            seconds = reports[trial][-1]["session"]["seconds"]["generate"]
            print(
                f"[{done}/{len(trials) * options.repeats}, {time.monotonic() - started:.0f} s] "
                f"{' '.join(trial)}: {seconds:.1f} s",
                file=sys.stderr,
            )
    print(f"{platform.processor() or platform.machine()}, {options.rows} rows of {options.input}, "
          f"{options.max_new_tokens} new tokens, {options.repeats} repeats")  # fmt: skip
    print(
        f"{'':37}{'seconds':>22}{'tokens/s':>10}{'waste':>8}{'batches':>9}{'peak GB':>9}{'same':>8}"
    )
    for (engine, policy), runs in reports.items():
        sessions = [run["session"] for run in runs]
        first = sessions[0]
        waste = (
            first["padding_share"]
            if first["token_by_token_prefill_share"] is None
            else first["token_by_token_prefill_share"]
        )
        print(
            f"{engine:22}{policy:15}"
            f"{spread([one['seconds']['generate'] for one in sessions]):>22}"
            f"{median(one['total_tokens_per_second'] for one in sessions):10.0f}"
            f"{waste:8.1%}{first['batches']:9}"
            f"{median(one['peak_memory_bytes'] for one in sessions) / 1e9:9.2f}"
            f"{rows_as_single(reports, engine, policy):>8}"
        )
    print("waste: padding share of prompt positions (transformers), "
          "force-decoded share of prompt tokens (ctranslate2)")  # fmt: skip
    document = {f"{engine} {policy}": runs for (engine, policy), runs in reports.items()}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
