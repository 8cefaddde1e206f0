"""What `packhorse plan` predicts against what `packhorse run` takes, for jobs of different shapes.

    python benchmarks/prediction.py MODEL INPUT

Each job is a part of INPUT: so many rows of so many characters, so many new tokens. `plan` predicts
every technique; the one the job names is then run. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """rows: of the input's, from `start` on, among those whose lines have so many characters."""

    rows: int
    new: int
    technique: str
    characters: tuple[int, int] = (0, 10_000)
    start: int = 0


JOBS = (
    Job(200, 64, "ctranslate2 int8 planned"),
    Job(100, 16, "ctranslate2 int8 planned", start=200),
    Job(80, 128, "ctranslate2 int8 planned", (0, 400)),
    Job(300, 8, "ctranslate2 int8 planned", (0, 400)),
    Job(40, 32, "ctranslate2 int8 planned", (1000, 10_000)),
    Job(60, 64, "ctranslate2 float32 planned", start=100),
    Job(120, 24, "ctranslate2 float32 planned", (0, 600)),
    Job(48, 48, "transformers float32 sorted-dynamic", start=300),
    Job(24, 96, "transformers float32 sorted-dynamic", (0, 400), start=50),
    Job(60, 32, "ctranslate2 int8 single", start=400),
    Job(200, 64, "packed int8 continuous"),
    Job(300, 8, "packed int8 continuous", (0, 400)),
    Job(40, 128, "packed int8 continuous", (1000, 10_000)),
    Job(60, 64, "packed float32 continuous", start=100),
    Job(120, 24, "packed float32 continuous", (0, 600)),
    Job(30, 200, "packed float32 continuous", (0, 400), start=50),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("input", help="JSONL, at least 600 rows")
    parser.add_argument("--jobs", nargs="+", type=int, default=list(range(1, len(JOBS) + 1)))
    return parser.parse_args()


def packhorse(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "packhorse", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 3):
        sys.exit(f"{' '.join(arguments)} failed with {done.returncode}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_job(model: str, lines: list[str], job: Job, folder: Path) -> dict[str, Any]:
    least, most = job.characters
    fitting = [line for line in lines if least <= len(line) <= most]
    source = folder / "job.jsonl"
    source.write_text("".join(fitting[job.start : job.start + job.rows]))
    engine, quantization, batching = job.technique.split()
    new = ["--max-new-tokens", str(job.new)]
    plan = packhorse(
        "plan", model, str(source), "--engines", engine, "--quantizations", quantization,
        "--batchings", batching, "--json", *new,
    )  # fmt: skip
    run = packhorse(
        "run", model, str(source), "-o", str(folder / "out.jsonl"), "--engine", engine,
        "--quantization", quantization, "--batching", batching, "--json", *new,
    )  # fmt: skip
    (predicted,) = plan["predictions"]
    return {
        "job": job.technique,
        "rows": plan["rows"],
        "new": job.new,
        "predicted_seconds": predicted["seconds"],
        "interval": [predicted["lowest_seconds"], predicted["highest_seconds"]],
        "seconds": run["session"]["seconds"]["generate"],
        "predicted_bytes": predicted["peak_memory_bytes"],
        "bytes": run["session"]["peak_memory_bytes"],
        "pace": plan["pace"],
        "pilot_rows": plan["pilot_rows"],
        "expected_by_run": run["session"]["expected"],
    }


def main() -> None:
    options = arguments()
    lines = Path(options.input).read_text().splitlines(keepends=True)
    found = []
    print(f"{'technique':38}{'rows':>5}{'new':>5}{'predicted':>11}{'took':>8}{'off':>7}"
          f"{'predicted':>12}{'peak':>8}{'off':>7}")  # fmt: skip
    for number in options.jobs:
        with tempfile.TemporaryDirectory() as folder:
            job = run_job(options.model, lines, JOBS[number - 1], Path(folder))
        found.append(job)
        off = job["predicted_seconds"] / job["seconds"] - 1
        memory = job["predicted_bytes"] / job["bytes"] - 1
        print(
            f"{job['job']:38}{job['rows']:5}{job['new']:5}{job['predicted_seconds']:9.1f} s"
            f"{job['seconds']:6.1f} s{off:+7.0%}{job['predicted_bytes'] / 1e9:9.2f} GB"
            f"{job['bytes'] / 1e9:5.2f} GB{memory:+7.0%}",
            flush=True,
        )
    within = sum(abs(job["predicted_seconds"] / job["seconds"] - 1) <= 0.2 for job in found)
    held = sum(job["predicted_bytes"] >= 0.9 * job["bytes"] for job in found)
    print(f"{within} of {len(found)} within 20 %; memory held in {held} of {len(found)}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
