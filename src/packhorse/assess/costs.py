"""What an answer costs: time and cores, the latency of one row, memory, disk, the cold start.

Latency, memory and cold start are measured in a process of its own (`probe`) that does what
`packhorse classify` does; so are the classic contestants' seconds per 1,000 rows. Those of the
language model are of its test rows, in this process, model loaded.
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
"""Rows that a classic contestant's seconds per 1,000 rows are measured on."""


@dataclass(frozen=True, slots=True)
class Costs:
    """seconds, core_seconds: per 1,000 rows, of `rows` together. p50, p95: seconds of one row
    alone, of `singles`. peak_memory_bytes: of the process. bytes_on_disk: of all it reads.
    cold_start: seconds from the start of a process to its first answer, files in memory already.
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
    """Costs of the classifier saved in `folder` on `texts`.

    spent: what its rows took together, where that is known already; else it is measured on up to
    MOST_TOGETHER of the texts. further_bytes: on disk, besides the folder. Raises PackhorseError
    where the process ends badly.
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
    """Runs `packhorse.assess.probe` in a process of its own; see there for what it finds."""
    rows = folder.with_name(folder.name + ".texts.json")
    write_json(rows, list(texts))
    command = [sys.executable, "-m", "packhorse.assess.probe", str(folder), str(rows)]
    command += [str(singles), "together" if together else "alone", repr(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows.unlink()
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise PackhorseError(
            f"the process that measures what {folder.name} costs failed: {said[-1]}",
            "run the command again; the other contestants do not depend on it",
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
