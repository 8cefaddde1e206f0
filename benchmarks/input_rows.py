"""Read, run and write many rows with the fake engine: what the frame of a job costs per row.

    python benchmarks/input_rows.py [--rows 1000000] [--formats jsonl parquet] [--keep all]

Each input has a prompt and 12 other columns: text, numbers, dates, decimals, lists and structs. The
output has the format of the input. Every job is a process of its own. Prints the seconds of its
stages and its CPU seconds, which other work on the machine disturbs less, its peak memory and the
load; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

STAGES = ("read", "generate", "export", "total")
GROUP_ROWS = 10_000
COLUMNS = {
    "prompt": pa.string(),
    "title": pa.string(),
    "author": pa.string(),
    "language": pa.string(),
    "pages": pa.int64(),
    "rating": pa.float64(),
    "is_public": pa.bool_(),
    "published": pa.date32(),
    "price": pa.decimal128(12, 2),
    "tags": pa.list_(pa.string()),
    "source": pa.struct([("name", pa.string()), ("page", pa.int32())]),
    "note": pa.string(),
    "count": pa.int32(),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="+", default=["jsonl", "parquet"])
    parser.add_argument("--keep", help="value of --keep (default: the option is not given)")
    return parser.parse_args()


def row(number: int) -> dict[str, Any]:
    return {
        "prompt": f"Summarise document {number} of the library in one sentence.",
        "title": f"Document {number}",
        "author": f"Author {number % 997}",
        "language": ("en", "de", "fr")[number % 3],
        "pages": number % 1000,
        "rating": number % 50 / 10,
        "is_public": number % 2 == 0,
        "published": date(2000, 1, 1) + timedelta(days=number % 9000),
        "price": Decimal(number % 10_000) / 100,
        "tags": [f"tag {number % 7}", f"tag {number % 11}"],
        "source": {"name": "library", "page": number % 300},
        "note": None if number % 4 else "checked by hand",
        "count": number % 13,
    }


def write_input(path: Path, rows: int) -> None:
    if path.suffix == ".jsonl":
        with path.open("w") as file:
            file.writelines(json.dumps(row(n), default=str) + "\n" for n in range(rows))
        return
    schema = pa.schema(list(COLUMNS.items()))
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, GROUP_ROWS):
            group = [row(n) for n in range(start, min(rows, start + GROUP_ROWS))]
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def run(source: Path, keep: str | None) -> dict[str, Any]:
    output = source.with_name(f"out{source.suffix}")
    command = [sys.executable, "-m", "packhorse", "run", "fake", str(source), "-o", str(output)]
    command += ["--engine", "fake", "--max-new-tokens", "4", "--json"]
    if keep is not None:
        command += ["--keep", keep]
    before = cpu_seconds()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    session = json.loads(done.stdout.splitlines()[-1])["session"]
    manifest = json.loads(output.with_name(f"{output.name}.manifest.json").read_text())
    seconds = {name: round(session["seconds"].get(name, 0.0), 1) for name in STAGES}
    return {
        **seconds,
        "cpu": round(cpu_seconds() - before, 1),
        "rows": manifest["counts"]["completed"],
        "peak_gb": round(session["peak_memory_bytes"] / 1e9, 2),
        "output_mb": round(output.stat().st_size / 1e6),
        "load": round(os.getloadavg()[0], 1),
    }


def cpu_seconds() -> float:
    """Return the CPU time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    options = arguments()
    found = {}
    for suffix in options.formats:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / f"in.{suffix}"
            write_input(source, options.rows)
            found[suffix] = run(source, options.keep)
        print(suffix, *(f"{name} {value}" for name, value in found[suffix].items()), sep="  ")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
