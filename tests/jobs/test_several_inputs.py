"""Jobs over several files, folders and patterns: one output, or one per file."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

import packhorse
from packhorse import EngineConfig, InputConfig, JobConfig, OutputConfig, SamplingParams
from packhorse.cli import main
from packhorse.errors import ConfigError, InputError
from packhorse.inputs import files_of, find_files

FAKE = EngineConfig(engine="fake")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write_lines(folder / "b.jsonl", [{"prompt": "b one"}, {"id": "own", "prompt": "b two"}])
    write_lines(folder / "sub" / "a.jsonl", [{"prompt": "a one"}])
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "b one"}\n', mtime=0))
    (folder / ".hidden.jsonl").write_text("{}\n")
    (folder / "README.md").write_text("no rows")
    return folder


def job(tmp_path: Path, *inputs: Path | str, **more: Any) -> JobConfig:
    first, *others = map(str, inputs)
    decoding = SamplingParams(max_new_tokens=8)
    config = JobConfig("fake", first, tmp_path / "out.jsonl", FAKE, decoding=decoding)
    return replace(config, more_inputs=tuple(others), **more)


def test_a_folder_is_read_in_the_order_of_its_paths(folder: Path, tmp_path: Path) -> None:
    report = packhorse.run(job(tmp_path, folder))
    rows = lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == [
        "b.jsonl:line-1", "own", "c.jsonl.gz:line-1", "sub/a.jsonl:line-1",
    ]  # fmt: skip
    assert rows[0]["text"] == rows[2]["text"]
    manifest = json.loads(report.manifest.read_text())
    assert len(manifest["input"]["files"]) == 3
    assert manifest["input"]["bytes"] == sum(manifest["input"]["files"].values())


def test_patterns_and_files_are_read_in_the_order_given(folder: Path, tmp_path: Path) -> None:
    names = [str(folder / "sub/a.jsonl"), str(folder / "*.jsonl"), str(folder / "b.jsonl")]
    assert [path.name for path in files_of(find_files(names))] == ["a.jsonl", "b.jsonl"]
    deep = find_files([str(folder / "**" / "*.jsonl")])
    assert [path.name for path in files_of(deep)] == ["b.jsonl", "a.jsonl"]
    odd = tmp_path / "rows[1].jsonl"
    write_lines(odd, [{"prompt": "x"}])
    assert find_files([str(odd)]) == odd


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["absent.jsonl"], "there is no file"),
        (["*.absent"], "there is no file"),
        (["data", "other.csv"], "must have one format"),
        (["empty"], "has no file of rows"),
    ],
)
def test_names_that_are_no_inputs(
    folder: Path, tmp_path: Path, names: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.csv").write_text("prompt\nx\n")
    with pytest.raises(InputError, match=message):
        find_files([str(tmp_path / name) for name in names])


def test_equal_ids_in_two_files_end_the_job(folder: Path, tmp_path: Path) -> None:
    write_lines(folder / "z.jsonl", [{"id": "own", "prompt": "z"}])
    with pytest.raises(InputError, match="own"):
        packhorse.run(job(tmp_path, folder))


def test_a_file_without_rows_costs_no_other(folder: Path, tmp_path: Path) -> None:
    (folder / "empty.jsonl").write_text("\n")
    packhorse.run(job(tmp_path, folder))
    assert len(lines(tmp_path / "out.jsonl")) == 4
    for path in folder.rglob("*.jsonl*"):
        path.unlink()
    (folder / "empty.jsonl").write_text("\n")
    (folder / "none.jsonl").write_text("\n")
    with pytest.raises(InputError, match="none of the 2 files has rows"):
        packhorse.run(job(tmp_path, folder, output=tmp_path / "other.jsonl"))


def test_a_column_that_one_file_lacks_ends_the_job_before_it_runs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("q,n\none,1\n")
    (tmp_path / "b.csv").write_text("p,n\ntwo,2\n")
    reading = InputConfig(prompt_column="q")
    with pytest.raises(InputError, match=r"b\.csv has no column 'q'"):
        packhorse.run(job(tmp_path, tmp_path / "a.csv", tmp_path / "b.csv", reading=reading))


def test_columns_of_all_files_are_kept(tmp_path: Path) -> None:
    for name, values in (("a", pa.array([1, 2], "int32")), ("b", pa.array([None, None], "null"))):
        table = pa.table({"prompt": [f"{name} one", f"{name} two"], "n": values})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    keep = OutputConfig(keep="all")
    for suffix in (".parquet", ".jsonl"):
        packhorse.run(job(tmp_path, *files, output=tmp_path / f"out{suffix}", writing=keep))
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table.schema.field("n").type == pa.int32()
    assert table["n"].to_pylist() == [1, 2, None, None]
    assert [row["n"] for row in lines(tmp_path / "out.jsonl")] == [1, 2, None, None]
    other = pa.table({"prompt": ["c one"], "n": ["text"]})
    pyarrow.parquet.write_table(other, tmp_path / "c.parquet")
    more = job(tmp_path, *files, tmp_path / "c.parquet", output=tmp_path / "more.parquet")
    with pytest.raises(InputError, match=r"c\.parquet have other types"):
        packhorse.run(replace(more, writing=keep))


def test_a_limit_counts_rows_of_all_files(folder: Path, tmp_path: Path) -> None:
    packhorse.run(job(tmp_path, folder, reading=InputConfig(limit=3)))
    assert len(lines(tmp_path / "out.jsonl")) == 3


def test_standard_input_is_read_alone(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"prompt": "x"}])
    with pytest.raises(ConfigError, match="standard input"):
        packhorse.run(job(tmp_path, "-", tmp_path / "a.jsonl"))


def test_the_output_is_none_of_the_inputs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the output is the input"):
        packhorse.run(job(tmp_path, folder, output=folder / "b.jsonl"))


def test_one_output_per_file(folder: Path, tmp_path: Path, capsys: Any) -> None:
    (folder / "broken.jsonl.gz").write_bytes(b"\x1f\x8b\x08")
    out = tmp_path / "out"
    arguments = ["run", "fake", str(folder), "--output-dir", str(out), "--engine", "fake", "--json"]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "broken.jsonl.gz" in captured.err
    assert "Traceback" not in captured.err
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.jsonl"))
    assert names == ["b.jsonl", "c.jsonl", "sub/a.jsonl"]
    assert [row["id"] for row in lines(out / "b.jsonl")] == ["line-1", "own"]
    assert json.loads(captured.out)["unread_inputs"] == 1
    (folder / "broken.jsonl.gz").unlink()
    assert main([*arguments[:-1], "--max-new-tokens", "256"]) == 0


def test_two_files_with_one_output_are_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "data" / "a.jsonl", [{"prompt": "x"}])
    (tmp_path / "data" / "a.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "y"}\n'))
    out = str(tmp_path / "out")
    assert main(["run", "fake", str(tmp_path / "data"), "--output-dir", out, "--engine", "fake"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [[], ["-o", "out.jsonl", "--output-dir", "out"]], ids=["none", "both"]
)
def test_one_place_for_the_output(options: list[str], capsys: Any) -> None:
    assert main(["run", "fake", "in.jsonl", *options]) == 2
    assert "--output-dir" in capsys.readouterr().err


@pytest.mark.slow
def test_kill_at_random_moments_in_a_folder_of_compressed_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(20):
        rows = (json.dumps({"prompt": f"file {number} row {n}", "place": n}) for n in range(10))
        content = "".join(row + "\n" for row in rows).encode()
        (folder / f"{number:02}.jsonl.gz").write_bytes(gzip.compress(content))

    def command(output: Path) -> list[str]:
        options = ("--engine", "fake", "--max-new-tokens", "6", "--keep", "place")
        return [
            sys.executable,
            "-m",
            "packhorse",
            "run",
            "fake",
            str(folder),
            "-o",
            str(output),
            *options,
        ]

    environment = {**os.environ, "PACKHORSE_FAKE_SECONDS_PER_TOKEN": "0.01"}
    clean = tmp_path / "clean.jsonl"
    started = time.monotonic()
    subprocess.run(command(clean), check=True, capture_output=True, env=environment)
    seconds = time.monotonic() - started
    moments = random.Random(3)
    for number in range(5):
        output = tmp_path / f"out{number}.jsonl"
        process = subprocess.Popen(
            command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        time.sleep(moments.uniform(0.2, 1.0) * seconds)
        process.kill()
        process.wait()
        subprocess.run(command(output), check=True, capture_output=True)
        assert output.read_bytes() == clean.read_bytes()
