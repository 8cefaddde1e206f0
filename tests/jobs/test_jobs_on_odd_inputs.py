"""Whole jobs on inputs as users have them: odd ids, TSV with quotes, batches of another model."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse import EngineConfig, InputConfig, JobConfig, SamplingParams
from packhorse.cli.progress import PlainReporter
from packhorse.errors import InputError, JobChangedError


def job_on(path: Path, output: str = "out.jsonl", **reading: Any) -> JobConfig:
    return JobConfig(
        model="tiny",
        input=str(path),
        output=path.with_name(output),
        engine=EngineConfig(engine="fake"),
        decoding=SamplingParams(max_new_tokens=4),
        reading=InputConfig(**reading),
    )


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content)
    return path


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


# --- ids -------------------------------------------------------------------------------------

NUMBERS = ["18446744073709551615", "1.0", "1e3", "-0", "7", "0.10"]


def test_ids_come_back_digit_by_digit_in_every_format(tmp_path: Path) -> None:
    lines = [f'{{"id": {number}, "prompt": "x"}}' for number in NUMBERS]
    path = written(tmp_path, "in.jsonl", "\n".join([*lines, '{"id": 2.50}']))
    job = job_on(path)
    packhorse.run(job)
    found = Path(job.output).read_text().splitlines()
    for number, line in zip([*NUMBERS, "2.50"], found, strict=True):
        assert line.startswith(f'{{"id": {number}, ')
    for ending in ("csv", "parquet"):
        table = replace(job, output=tmp_path / f"out.{ending}")
        packhorse.run(table)
    with (tmp_path / "out.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == [*NUMBERS, "2.50"]
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == [*NUMBERS, "2.50"]
    before = Path(job.output).read_bytes()
    assert packhorse.run(job).session is None
    assert Path(job.output).read_bytes() == before


def test_unsigned_ids_of_parquet_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    ids = pa.array([2**64 - 1, 2**63], pa.uint64())
    pq.write_table(pa.table({"id": ids, "prompt": [b"caf\xc3\xa9", b"\xff"]}), path)
    packhorse.run(job_on(path))
    good, bad = rows_of(tmp_path / "out.jsonl")
    assert (good["id"], bad["id"]) == (2**64 - 1, 2**63)
    assert bad["error"]["code"] == "invalid_utf8"


def test_duplicate_ids_of_parquet_are_named_by_row(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": [7, 8, 7], "prompt": ["a", "b", "c"]}), path)
    with pytest.raises(InputError, match=r"rows 1 and 3 have the same id 7"):
        packhorse.run(job_on(path))


def test_rows_without_ids_clash_with_none_and_keep_their_results(tmp_path: Path) -> None:
    first = '{"id": "line-2", "prompt": "a"}\n{"prompt": "b"}\n{"id": "line-4"\n'
    path = written(tmp_path, "in.jsonl", first)
    job = job_on(path)
    packhorse.run(job)
    ids = ["line-2", "line-2-2", "line-3"]
    assert [row["id"] for row in rows_of(Path(job.output))] == ids
    path.write_text(first + '{"id": "x", "prompt": "c"}\n{"id": "line-3", "prompt": "d"}\n')
    report = packhorse.run(job)
    assert report.session is not None
    assert report.session["rows_completed"] == 2
    assert [row["id"] for row in rows_of(Path(job.output))] == [*ids[:2], "line-3-2", "x", "line-3"]


# --- TSV -------------------------------------------------------------------------------------


def test_a_tsv_job_is_not_continued_with_other_quoting(tmp_path: Path) -> None:
    path = written(tmp_path, "in.tsv", 'id\tprompt\n1\t"He said\n2\t so"\n')
    job = job_on(path)
    packhorse.run(job)
    assert len(rows_of(Path(job.output))) == 2
    quoted = replace(job, reading=InputConfig(csv_quoting="minimal"))
    with pytest.raises(JobChangedError, match="csv_quoting was 'none', is 'minimal'"):
        packhorse.run(quoted)
    packhorse.run(replace(quoted, output=tmp_path / "other.jsonl"))
    assert len(rows_of(tmp_path / "other.jsonl")) == 1
    packhorse.run(replace(job, reading=InputConfig(csv_quoting="none")))  # what auto was


# --- batch files -----------------------------------------------------------------------------


def test_a_batch_file_of_another_model_runs_once_its_name_is_allowed(tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    lines = [
        {"custom_id": name, "url": "/v1/chat/completions", "body": {**body, "model": model}}
        for name, model in [("a", "tiny"), ("b", "gpt-4o-mini")]
    ]
    path = written(tmp_path, "in.jsonl", "\n".join(map(json.dumps, lines)))
    job = job_on(path)
    report = packhorse.run(job)
    assert report.counts.failed_by_code == {"model_not_found": 1}
    assert "--served-model-name 'gpt-4o-mini'" in rows_of(Path(job.output))[1]["error"]["message"]
    report = packhorse.run(replace(job, reading=InputConfig(served_model_name=("gpt-4o-mini",))))
    assert (report.counts.completed, report.counts.failed) == (2, 0)
    assert report.session is not None
    assert report.session["rows_completed"] == 1


# --- what is said ----------------------------------------------------------------------------


def said_of(job: JobConfig) -> str:
    stream = io.StringIO()
    packhorse.run(job, PlainReporter(stream))
    return stream.getvalue()


def test_only_results_of_an_earlier_run_are_done_already(tmp_path: Path) -> None:
    path = written(tmp_path, "in.jsonl", '{"prompt": "a"}\n{"prompt": ""}\n')
    first = said_of(job_on(path))
    assert "done already" not in first
    assert "1 of 2 rows cannot be read" in first
    path.write_text('{"prompt": "a"}\n{"prompt": ""}\n{"prompt": "b"}\n')
    second = said_of(job_on(path))
    assert "1 of 3 rows are done already" in second


def test_quotes_in_a_tsv_file_are_mentioned_once(tmp_path: Path) -> None:
    path = written(tmp_path, "in.tsv", 'prompt\n"a"\n"b"\n')
    said = said_of(job_on(path))
    assert said.count("--csv-quoting minimal") == 1


@pytest.mark.slow
def test_text_options_are_utf8_in_an_ascii_locale(tmp_path: Path) -> None:
    path = written(tmp_path, "in.jsonl", '{"a": "x"}\n')
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}

    def run(template: bytes) -> subprocess.CompletedProcess[bytes]:
        words = ["run", "tiny", str(path), "-o", str(tmp_path / "o.jsonl"), "--engine", "fake"]
        command = [os.fsencode(word) for word in (sys.executable, "-m", "packhorse", *words)]
        return subprocess.run(
            [*command, b"--template", template],
            env={**os.environ, **environment},
            capture_output=True,
            check=False,
        )

    refused = run(b"caf\xe9 {a}")
    assert refused.returncode == 2
    assert b"argument --template: must be UTF-8 text" in refused.stderr
    done = run("café {a}".encode())
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(tmp_path / "o.jsonl")
    assert row["prompt_tokens"] == len("café x".encode())
