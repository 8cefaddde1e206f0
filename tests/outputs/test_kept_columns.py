"""Columns of the input in the output: their types, their names, and jobs that are resumed."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import packhorse
from packhorse import EngineConfig, InputConfig, JobConfig, OutputConfig, SamplingParams
from packhorse.cli import main
from packhorse.errors import ConfigError, InputError, PackhorseError
from packhorse.inputs import kept
from packhorse.inputs.json_types import JsonType
from packhorse.jobs.frame import Silent

RESULTS = [
    "text", "finish_reason", "prompt_tokens", "completion_tokens", "error_code", "error_message",
]  # fmt: skip
ZONE = "Europe/Berlin"
COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "whole": (pa.int64(), [2**62, None, -1]),
    "unsigned": (pa.uint64(), [2**64 - 1, 0, None]),
    "small": (pa.int8(), [-128, 127, 0]),
    "real": (pa.float64(), [0.1, math.nan, math.inf]),
    "single": (pa.float32(), [0.1, None, 2.5]),
    "flag": (pa.bool_(), [True, None, False]),
    "day": (pa.date32(), [date(2024, 2, 29), None, date(1, 1, 1)]),
    "moment": (pa.timestamp("ns", ZONE), [1, 1_700_000_000_123_456_789, None]),
    "far": (pa.timestamp("s"), [2**39, 0, None]),
    "clock": (pa.time64("us"), [time(1, 2, 3, 4), None, time(0)]),
    "exact_clock": (pa.time64("ns"), [1, 1000, None]),
    "length": (pa.duration("us"), [timedelta(days=1, microseconds=1), None, timedelta(0)]),
    "price": (pa.decimal128(38, 10), [Decimal("12.3000000001"), None, Decimal(10) ** 27]),
    "bytes": (pa.binary(), [b"text", b"\xff\x00", None]),
    "kind": (pa.dictionary(pa.int8(), pa.string()), ["a", "b", "a"]),
    "tags": (pa.list_(pa.string()), [["x", None], [], None]),
    "pair": (pa.list_(pa.int32(), 2), [[1, 2], [3, 4], [5, 6]]),
    "nested": (
        pa.struct([("at", pa.timestamp("ns")), ("items", pa.list_(pa.decimal128(5, 2)))]),
        [{"at": 1, "items": [Decimal("1.50")]}, None, {"at": None, "items": []}],
    ),
    "map": (pa.map_(pa.string(), pa.int32()), [[("a", 1)], [("a", 1), ("a", 2)], None]),
    "image": (pa.struct([("bytes", pa.binary())]), [{"bytes": b"\x89PNG\xff"}, None, None]),
    "nothing": (pa.null(), [None, None, None]),
    "large": (pa.large_string(), ["x", "\u2028\n", None]),
}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Run a job on the fake engine and return its output."""

    def run(source: Path, suffix: str = ".jsonl", keep: Any = "all", **config: Any) -> Path:
        output = tmp_path / f"out{suffix}"
        column = config.pop("output_column", "text")
        packhorse.run(job_of(source, output, OutputConfig(keep, column), InputConfig(**config)))
        return output

    return run


def job_of(
    source: Path, output: Path, writing: OutputConfig, reading: InputConfig | None = None
) -> JobConfig:
    return JobConfig(
        "fake",
        str(source),
        output,
        engine=EngineConfig(engine="fake"),
        decoding=SamplingParams(max_new_tokens=4),
        reading=reading or InputConfig(),
        writing=writing,
    )


def objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def write_table(path: Path, **others: Any) -> Path:
    arrays = {name: pa.array(values, kind) for name, (kind, values) in COLUMNS.items()}
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], **arrays, **others}), path)
    return path


# --- types -----------------------------------------------------------------------------------


def test_parquet_to_parquet_keeps_every_type(tmp_path: Path, run: Any) -> None:
    source = write_table(tmp_path / "in.parquet")
    found, before = pq.read_table(run(source, ".parquet")), pq.read_table(source)
    assert found.schema.names == ["id", "prompt", *COLUMNS, *RESULTS]
    same = found.select(before.schema.names)
    assert same.schema.equals(before.schema)
    assert same.drop(["real"]).equals(before.drop(["real"]))
    assert str(same["real"]) == str(before["real"])  # NaN equals itself as text


def test_parquet_to_jsonl_has_a_form_for_every_type(tmp_path: Path, run: Any) -> None:
    output = run(write_table(tmp_path / "in.parquet"))
    first, second, third = objects(output)
    assert [first[name] for name in ("whole", "unsigned", "small", "real", "single")] == [
        2**62, 2**64 - 1, -128, 0.1, 0.1,
    ]  # fmt: skip
    assert (second["real"], third["real"]) == (None, None)
    assert first["day"] == "2024-02-29"
    assert second["moment"] == "2023-11-14 23:13:20.123456789+01:00"
    assert first["far"].startswith("19391-")
    assert first["clock"] == "01:02:03.000004"
    assert (first["exact_clock"], second["exact_clock"]) == (
        "00:00:00.000000001", "00:00:00.000001",
    )  # fmt: skip
    assert '"length": 86400.000001,' in output.read_text()
    assert '"price": 12.3000000001,' in output.read_text()
    assert '"price": 1000000000000000000000000000' in output.read_text()
    assert (first["bytes"], second["bytes"]) == ("text", {"base64": "/wA="})
    assert (first["kind"], first["tags"], first["pair"]) == ("a", ["x", None], [1, 2])
    assert first["nested"]["items"] == [1.5]
    assert first["nested"]["at"].endswith("00:00:00.000000001")
    assert (first["map"], second["map"]) == ({"a": 1}, [["a", 1], ["a", 2]])
    assert first["image"] == {"bytes": {"base64": "iVBOR/8="}}
    assert second["large"] == "\u2028\n"


def test_parquet_to_csv_writes_the_same_values_as_text(tmp_path: Path, run: Any) -> None:
    with run(write_table(tmp_path / "in.parquet"), ".csv").open(newline="") as file:
        first, second, third = csv.DictReader(file)
    assert list(first) == ["id", "prompt", *COLUMNS, *RESULTS]
    assert (first["whole"], first["flag"], second["flag"]) == (str(2**62), "true", "")
    assert (second["real"], third["real"]) == ("nan", "inf")
    assert (first["price"], first["day"]) == ("12.3000000001", "2024-02-29")
    assert json.loads(first["tags"]) == ["x", None]
    assert '"items": [1.50]' in first["nested"]
    assert json.loads(second["bytes"]) == {"base64": "/wA="}


JSON_ROWS = [
    {"id": 7, "prompt": "a", "no": 1, "x": 1, "list": [1, 2.5], "obj": {"a": 1}, "mixed": 1},
    {"id": 8, "prompt": "b", "no": 2**63, "x": 2.5, "list": [], "obj": {"b": [None]}, "mixed": "1"},
    {"id": 9, "prompt": "c", "x": None, "late": True, "big": 2**70, "wide": 2**53 + 1, "e": {}},
    {"id": 10, "prompt": "d", "wide": 0.5, "half": "\ud800", "e": {}, "mixed": {"y": [1]}},
]


def test_json_lines_to_parquet_finds_common_types(tmp_path: Path, run: Any) -> None:
    found = pq.read_table(run(write(tmp_path / "in.jsonl", *JSON_ROWS, "{"), ".parquet"))
    types = {field.name: str(field.type) for field in found.schema}
    assert types | {"id": "string", "input_id": "int64"} == types
    assert types["no"] == "uint64"
    assert (types["x"], types["late"]) == ("double", "bool")
    assert types["list"] == "list<element: double>"
    assert types["obj"] == "struct<a: int64, b: list<element: string>>"
    assert {types[name] for name in ("mixed", "big", "wide", "e", "half")} == {"string"}
    rows = found.to_pylist()
    assert [row["mixed"] for row in rows] == ["1", '"1"', None, '{"y": [1]}', None]
    assert [rows[2]["wide"], rows[3]["wide"]] == [str(2**53 + 1), "0.5"]
    assert rows[3]["half"] == "\\ud800"
    assert rows[0]["obj"] == {"a": 1, "b": None}
    assert rows[4]["error_code"] == "malformed_json"


def test_json_lines_keep_their_fields_and_values(tmp_path: Path, run: Any) -> None:
    nan = '{"prompt": "x", "no": NaN, "exact": 12345678901234567890123, "deep": {"z": [1, "é"]}}'
    output = run(write(tmp_path / "in.jsonl", *JSON_ROWS, nan))
    rows = objects(output)
    for row, before in zip(rows, JSON_ROWS, strict=False):
        assert {**row, **before} == row
    assert rows[4]["no"] is None
    assert rows[4]["exact"] == 12345678901234567890123
    assert rows[4]["deep"] == {"z": [1, "é"]}


def test_json_lines_to_csv_have_the_union_of_fields(tmp_path: Path, run: Any) -> None:
    with run(write(tmp_path / "in.jsonl", *JSON_ROWS), ".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["no", "x", "list", "obj", "mixed", "late", "big", "wide", "e", "half"]
    assert list(rows[0]) == ["id", "prompt", *names, *RESULTS]
    assert [row["mixed"] for row in rows] == ["1", "1", "", '{"y": [1]}']


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_csv_cells_stay_text(tmp_path: Path, run: Any, suffix: str) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(b'q,"a,b",no\nx,"1\n2",007\ny,,\n\xe9,\xe9,1\n')
    output = run(source, suffix, "all", prompt_column="q")
    if suffix == ".jsonl":
        rows = objects(output)
    elif suffix == ".csv":
        with output.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = pq.read_table(output).to_pylist()
    assert [row["a,b"] for row in rows[:2]] == ["1\n2", ""]
    assert [row["no"] for row in rows] == ["007", "", "1"]
    cell = rows[2]["a,b"]
    assert (cell if suffix == ".jsonl" else json.loads(cell)) == {"base64": "6Q=="}


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=6,
)  # fmt: skip


@given(st.lists(values, min_size=1, max_size=5))
def test_a_common_type_holds_every_value_exactly(found: list[Any]) -> None:
    kind = JsonType()
    for value in found:
        kind.add(value)
    arrow = kind.arrow()
    if arrow is not None:
        assert holds(pa.array(found, arrow).to_pylist(), found)


def holds(found: Any, value: Any) -> bool:
    """Whether `found` is `value`, but for missing fields, which are null."""
    if isinstance(value, dict):
        names = set(found) if found else set()
        return names >= set(value) and all(holds(found[n], value.get(n)) for n in names)
    if isinstance(value, list):
        return len(found) == len(value) and all(map(holds, found, value))
    return bool(found == value)


# --- which columns, and their names ----------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "config", "expected"),
    [
        ("prompt,b\nx,1\n", {}, []),
        ("q,b\nx,1\n", {"prompt_column": "q"}, ["q", "b"]),
        ("prompt,b\nx,1\n", {"template": "{b}"}, ["prompt", "b"]),
        ("prompt,b\nx,1\n", {"keep": "all"}, ["prompt", "b"]),
        ("prompt,b\nx,1\n", {"keep": ("b",)}, ["b"]),
        ("q,b\nx,1\n", {"prompt_column": "q", "keep": ("b", "q", "b")}, ["b", "q"]),
        ("q,b\nx,1\n", {"prompt_column": "q", "keep": "none"}, []),
        ("text,b\nx,1\n", {"keep": "all"}, ["input_text", "b"]),
        ("text,input_text,error\nx,1,2\n", {"keep": "all"},
         ["input_text", "input_input_text", "input_error"]),
        ("text,input_x\nx,1\n", {"keep": "all", "output_column": "answer"}, ["text", "input_x"]),
        ("prompt,answer\nx,1\n", {"keep": "all", "output_column": "answer"},
         ["prompt", "input_answer"]),
        ("id,prompt\nk,x\n", {"keep": "all"}, ["prompt"]),
        ("id,prompt\nk,x\n", {"keep": "all", "id_column": "prompt"}, ["input_id", "prompt"]),
        ("prompt,a,a\nx,1,2\n", {"template": "{prompt}"}, ["prompt"]),
    ],
)  # fmt: skip
def test_which_columns_are_kept(
    tmp_path: Path, run: Any, content: str, config: dict[str, Any], expected: list[str]
) -> None:
    source = tmp_path / "in.csv"
    source.write_text(content)
    settings = {"keep": "auto", **config}
    with run(source, ".csv", **settings).open(newline="") as file:
        header = next(csv.reader(file))
    text = config.get("output_column", "text")
    assert header == ["id", *expected, text, *RESULTS[1:]]


def test_json_lines_are_kept_by_default_with_a_template(tmp_path: Path, run: Any) -> None:
    source = write(tmp_path / "in.jsonl", {"q": "x", "text": 1}, {"text": 2})
    first, second = objects(run(source, keep="auto", template="{q}"))
    assert list(first)[:4] == ["id", "q", "input_text", "text"]
    assert list(second) == ["id", "input_text", "error"]


def test_plain_text_keeps_its_lines_when_asked(tmp_path: Path, run: Any) -> None:
    source = tmp_path / "in.txt"
    source.write_text("one\ntwo\n")
    assert [row["prompt"] for row in objects(run(source))] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "config", "message", "hint"),
    [
        ("a.csv", "prompt,author\nx,1\n", {"keep": ("Auther",)}, "no column 'Auther'", "'author'"),
        ("a.jsonl", '{"prompt": "x", "author": 1}\n', {"keep": ("auther",)}, "no column 'auther'",
         "'author'"),
        ("a.txt", "x\n", {"keep": ("a",)}, "no column 'a'; it has 'prompt'", "--keep"),
        ("a.csv", "prompt,a,a\nx,1,2\n", {"keep": "all"}, "more than one column 'a'", "rename"),
        ("a.csv", "prompt,key\nx,1\n", {"id_column": "kye"}, "no column 'kye'", "'key'"),
        ("a.jsonl", '{"prompt": "x", "key": 1}\n', {"id_column": "kye"}, "no column 'kye'",
         "'key'"),
        ("a.txt", "x\n", {"id_column": "a"}, "no ids", "leave"),
        ("a.csv", "prompt\nx\n", {"output_column": "id"}, "called id", "other than"),
        ("a.csv", "prompt\nx\n", {"output_column": "input_error"}, "called input_error", "other"),
        ("a.csv", "prompt\nx\n", {"output_column": " "}, "must have a name", "name it"),
        ("a.csv", "prompt\nx\n", {"output_column": "\udcff"}, "must have a name", "name it"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_used(
    tmp_path: Path, run: Any, name: str, content: str, config: Any, message: str, hint: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(PackhorseError) as found:
        run(tmp_path / name, ".jsonl", **{"keep": "none", **config})
    assert message in str(found.value)
    assert hint in str(found.value.hint)


@pytest.mark.parametrize(
    "config", [{"keep": "all"}, {"id_column": "x"}, {"output_column": "answer"}]
)
def test_openai_lines_have_no_columns(tmp_path: Path, run: Any, config: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "x"}]}
    line = {"custom_id": "a", "url": "/v1/chat/completions", "body": body}
    with pytest.raises(ConfigError, match="OpenAI batch lines"):
        run(write(tmp_path / "in.jsonl", line), **{"keep": "auto", **config})


@pytest.mark.parametrize(
    ("given", "expected"),
    [("all", "all"), ("none", "none"), ("a,b", ("a", "b")), ('a,"b,c"', ("a", "b,c"))],
)
def test_keep_on_the_command_line(given: str, expected: Any) -> None:
    from packhorse.cli import options

    assert options.columns(given) == expected


# --- ids -------------------------------------------------------------------------------------


def test_ids_of_another_column(tmp_path: Path, run: Any) -> None:
    lines = ['{"key": 1.50, "prompt": "x", "id": "other"}', '{"prompt": "y"}']
    output = run(write(tmp_path / "in.jsonl", *lines), id_column="key")
    assert output.read_text().startswith('{"id": 1.50, "key": 1.5, "prompt": "x", "input_id": ')
    assert objects(output)[1]["id"] == "line-2"


def test_ids_of_another_parquet_column(tmp_path: Path, run: Any) -> None:
    source = write_table(tmp_path / "in.parquet", key=pa.array([3, 2, 1], pa.uint64()))
    output = run(source, ".parquet", ("key", "tags"), id_column="key")
    table = pq.read_table(output)
    assert table.schema.names[:3] == ["id", "key", "tags"]
    assert table["id"].to_pylist() == ["3", "2", "1"]
    assert table["key"].type == pa.uint64()


# --- jobs ------------------------------------------------------------------------------------


def test_options_of_columns_may_change_between_runs(tmp_path: Path, run: Any) -> None:
    source = write(tmp_path / "in.jsonl", {"prompt": "x", "a": 1})
    job = job_of(source, tmp_path / "out.jsonl", OutputConfig("none"))
    packhorse.run(job)
    (first,) = objects(Path(job.output))
    report = packhorse.run(replace(job, writing=OutputConfig("all", "answer")))
    (second,) = objects(Path(job.output))
    assert report.session is None
    assert (second["answer"], second["a"]) == (first["text"], 1)
    with pytest.raises(PackhorseError, match="id_column was None, is 'a'"):
        packhorse.run(replace(job, reading=InputConfig(id_column="a")))


class Crash(Silent):
    def advance(self) -> None:
        raise RuntimeError("crash")


def interrupted(tmp_path: Path) -> tuple[Path, Path]:
    source = write(tmp_path / "in.jsonl", *({"prompt": f"p{n}", "no": n} for n in range(5)))
    job = job_of(source, tmp_path / "out.jsonl", OutputConfig("all"))
    with pytest.raises(RuntimeError, match="crash"):
        packhorse.run(job, Crash())
    return source, Path(job.output)


def test_export_of_an_unfinished_job_has_the_columns(tmp_path: Path) -> None:
    source, output = interrupted(tmp_path)
    partial = tmp_path / "out.partial.jsonl"
    assert main(["export", str(output)]) == 0
    rows = objects(partial)
    assert [row["no"] for row in rows] == list(range(5))
    assert sum("text" in row for row in rows) == 1
    assert main(["export", str(output), "--keep", "prompt", "--to", str(tmp_path / "o.csv")]) == 0
    assert (tmp_path / "o.csv").read_text().startswith("id,prompt,text,")
    source.write_text(source.read_text().replace('"no": 3', '"no": 4'))
    for lost in (False, True):
        if lost:
            source.unlink()
        partial.unlink(missing_ok=True)
        assert main(["export", str(output)]) == 2
        assert not partial.exists()
        assert main(["export", str(output), "--keep", "none"]) == 0
        assert sum("text" in row for row in objects(partial)) == 1


def test_an_edited_column_is_written_as_it_is_now(tmp_path: Path) -> None:
    source, output = interrupted(tmp_path)
    source.write_text(source.read_text().replace('"no": 3', '"no": 30'))
    packhorse.run(job_of(source, output, OutputConfig("all")))
    assert [row["no"] for row in objects(output)] == [0, 1, 2, 30, 4]


def test_an_input_that_changes_while_it_runs_is_not_mixed_up(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"prompt": "x", "no": 1})
    job = job_of(source, tmp_path / "out.jsonl", OutputConfig("all"))

    class Editor(Silent):
        def end(self) -> None:
            source.write_text(source.read_text().replace("1", "2"))

    with pytest.raises(InputError, match="changed since its rows were read"):
        packhorse.run(job, Editor())
    assert not Path(job.output).exists()
    packhorse.run(job)
    assert objects(Path(job.output))[0]["no"] == 2


def test_standard_input_keeps_its_columns(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "packhorse", "run", "fake", "-", "-o", "out.jsonl", "--engine",
        "fake", "--keep", "no", "--output-column", "answer", "--max-new-tokens", "3",
    ]  # fmt: skip
    for piped in ('{"prompt": "x", "no": 1}\n', ""):
        done = subprocess.run(
            command, cwd=tmp_path, input=piped, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert list(objects(tmp_path / "out.jsonl")[0])[:3] == ["id", "no", "answer"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_limits_and_groups_of_rows(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr("packhorse.outputs.PARQUET_ROW_GROUP_ROWS", 70)
    monkeypatch.setattr("packhorse.inputs.parquet._BATCH_ROWS", 30)
    monkeypatch.setattr(kept, "TABLE_ROWS", 30)
    table = pa.table({"prompt": [f"p{n}" for n in range(300)], "no": range(300)})
    pq.write_table(table, tmp_path / "in.parquet")
    write(tmp_path / "in.jsonl", *table.to_pylist())
    for source in ("in.parquet", "in.jsonl"):
        output = run(tmp_path / source, suffix, limit=200)
        if suffix == ".parquet":
            assert pq.read_table(output)["no"].to_pylist() == list(range(200))
        else:
            assert len(output.read_text().splitlines()) == 200 + (suffix == ".csv")
        for path in tmp_path.glob("out*"):
            if path.is_file():
                path.unlink()
        (tmp_path / f"out{suffix}.packhorse" / "journal.sqlite3").unlink()


def test_large_values_make_small_groups(tmp_path: Path, run: Any) -> None:
    values = [bytes([n]) * 4_000_000 for n in range(40)]
    table = pa.table({"prompt": [str(n) for n in range(40)], "data": values})
    pq.write_table(table, tmp_path / "in.parquet", compression="none")
    found = pq.ParquetFile(run(tmp_path / "in.parquet", ".parquet"))
    assert found.metadata.num_row_groups > 1
    assert found.read(["data"])["data"].to_pylist() == values


def test_datetimes_of_json_lines_stay_text(tmp_path: Path, run: Any) -> None:
    moment = datetime(2024, 1, 2, 3, 4, 5).isoformat()  # noqa: DTZ001
    output = run(write(tmp_path / "in.jsonl", {"prompt": "x", "at": moment}), ".parquet")
    assert pq.read_table(output)["at"].to_pylist() == [moment]
