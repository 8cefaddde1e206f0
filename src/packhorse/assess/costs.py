"""Measure the cost of an answer: time, cores, latency, memory, disk, cold start.

Latency, memory and cold start are measured in a separate process (`probe`) that works like
`packhorse classify`; so are the classic contestants' seconds per 1,000 rows. Those of the language
model come from its test rows in this process, after loading.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.assess.language_model import TimeSpent
from packhorse.errors import PackhorseError
from packhorse.evaluation.statistics import quantile
from packhorse.outputs import write_json

CLASSIC_SINGLE_ROWS = 100
MODEL_SINGLE_ROWS = 20
BATCH_ROWS = 250
"""Rows on which a classic contestant's seconds per 1,000 rows are measured."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured costs of one contestant.

    Attributes:
        seconds: per 1,000 rows, from a batch of `rows`; also core_seconds.
        p50: seconds of a single row, from `singles` rows; also p95.
        peak_memory_bytes: of the process.
        bytes_on_disk: of all files it reads.
        cold_start: seconds from process start to the first answer, with files in the page cache.
    """

    rows: int
    seconds: float
    core_seconds: float
    singles: int
    p50: float
    p95: float
    peak_memory_bytes: int
    bytes_on_disk: int
    cold_start: float


def measure_costs(
    folder: Path, texts: Sequence[str], spent: TimeSpent | None, further_bytes: int
) -> Costs:
    """Measure the classifier saved in `folder` on `texts`.

    Args:
        spent: time of all rows if already known; else it is measured on up to BATCH_ROWS texts.
        further_bytes: on disk, outside the folder.

    Raises:
        PackhorseError: the measuring process failed.
    """
    singles = MODEL_SINGLE_ROWS if spent else CLASSIC_SINGLE_ROWS
    texts = texts[:BATCH_ROWS]
    found = run_probe(folder, texts, min(singles, len(texts)), together=spent is None)
    together = spent or TimeSpent(len(texts), *found["together"])
    latencies = found["singles"]
    own = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Costs(
        rows=together.rows,
        seconds=1000 * together.seconds / together.rows,
        core_seconds=1000 * together.core_seconds / together.rows,
        singles=len(latencies),
        p50=quantile(latencies, 0.50) or 0.0,
        p95=quantile(latencies, 0.95) or 0.0,
        peak_memory_bytes=found["peak_memory_bytes"],
        bytes_on_disk=own + further_bytes,
        cold_start=found["cold_start"],
    )


def run_probe(
    folder: Path, texts: Sequence[str], singles: int, *, together: bool
) -> dict[str, Any]:
    """Run `packhorse.assess.probe` in a separate process and return its measurements."""
    rows = folder.with_name(folder.name + ".texts.json")
    write_json(rows, list(texts))
    command = [sys.executable, "-m", "packhorse.assess.probe", str(folder), str(rows)]
    command += [str(singles), "together" if together else "alone", repr(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows.unlink()
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no error output"]
        raise PackhorseError(
            f"measuring the cost of {folder.name} failed: {lines[-1]}",
            "run the command again; the other contestants do not depend on it",
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
