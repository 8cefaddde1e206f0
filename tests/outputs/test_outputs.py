from __future__ import annotations

import csv
import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.data import NumberId
from packhorse.errors import ConfigError, OutputError
from packhorse.outputs import OpenAIOutput, OutputRow, output_format, write_json, write_output

DONE = OutputRow("a", "Hello", "stop", 5, 2)
CHAT = OutputRow(7, 'Hi,\n"you"', "length", 3, 1, chat=True)
FAILED = OutputRow("c", error_code="bad_id", error_message="why", line=3)
ROWS = (DONE, CHAT, FAILED)
SUFFIXES = [".jsonl", ".csv", ".parquet"]


def read_back(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what is written -------------------------------------------------------------------------


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert write_output(path, ROWS) == 3
    assert path.read_text().splitlines() == [
        '{"id": "a", "text": "Hello", "finish_reason": "stop", "prompt_tokens": 5, '
        '"completion_tokens": 2}',
        '{"id": 7, "text": "Hi,\\n\\"you\\"", "finish_reason": "length", "prompt_tokens": 3, '
        '"completion_tokens": 1}',
        '{"id": "c", "error": {"code": "bad_id", "message": "why", "line": 3}}',
    ]


@pytest.mark.parametrize("text", ["1.0", "1e3", "-0", "18446744073709551616", "0.10"])
def test_an_id_that_is_a_number_keeps_its_digits(tmp_path: Path, text: str) -> None:
    path = tmp_path / "out.jsonl"
    done = OutputRow(NumberId(text), "1.0\n\u2028", "stop", 5, 2)
    failed = OutputRow(NumberId(text), error_code="bad_id", error_message="why", line=3)
    write_output(path, [done, failed])
    first, second = path.read_text().splitlines()
    assert first.startswith(f'{{"id": {text}, "text": "1.0\\n\\u2028", "finish_reason"')
    assert second.startswith(f'{{"id": {text}, "error": ')
    write_output(path, [done, failed], openai=OpenAIOutput("m"))
    for line in path.read_text().splitlines():
        assert f', "custom_id": {text}, "response": ' in line
        assert str(json.loads(line, parse_float=str, parse_int=str)["custom_id"]) == text
    for suffix in (".csv", ".parquet"):
        table = tmp_path / f"out{suffix}"
        write_output(table, [done, failed])
        assert [row["id"] for row in read_back(table)] == [text, text]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    assert write_output(path, ROWS) == 3
    assert path.read_bytes().decode() == (
        "id,text,finish_reason,prompt_tokens,completion_tokens,error_code,error_message\r\n"
        "a,Hello,stop,5,2,,\r\n"
        '7,"Hi,\n""you""",length,3,1,,\r\n'
        "c,,,,,bad_id,why\r\n"
    )


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    assert write_output(path, ROWS) == 3
    assert [tuple(row.values()) for row in read_back(path)] == [
        ("a", "Hello", "stop", 5, 2, None, None),
        ("7", 'Hi,\n"you"', "length", 3, 1, None, None),
        ("c", None, None, None, None, "bad_id", "why"),
    ]
    assert [str(column) for column in pq.read_schema(path).types] == [
        *("string", "string", "string", "int64", "int64", "string", "string")
    ]


def test_parquet_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    assert write_output(path, (OutputRow(n, "x") for n in range(20_001))) == 20_001
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert groups == [10_000, 10_000, 1]
    assert pq.read_table(path)["id"].to_pylist() == [str(n) for n in range(20_001)]


def test_openai(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert write_output(path, ROWS, openai=OpenAIOutput("m", created=5)) == 3
    bare, chat, failed = read_back(path)
    body = bare["response"].pop("body")
    name = bare["id"].removeprefix("batch_req_")
    assert bare == {
        "id": f"batch_req_{name}",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": f"req_{name}"},
        "error": None,
    }
    assert body == {
        "id": f"cmpl-{name}",
        "object": "text_completion",
        "created": 5,
        "model": "m",
        "choices": [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
    chat_body = chat["response"]["body"]
    assert chat["custom_id"] == 7
    assert chat_body["id"].startswith("chatcmpl-")
    assert chat_body["object"] == "chat.completion"
    assert chat_body["choices"][0]["message"] == {
        "role": "assistant",
        "content": 'Hi,\n"you"',
        "refusal": None,
    }
    assert chat_body["choices"][0]["finish_reason"] == "length"
    assert failed | {"id": ""} == {
        "id": "",
        "custom_id": "c",
        "response": None,
        "error": {"code": "bad_id", "message": "why"},
    }
    assert len({row["id"] for row in (bare, chat, failed)}) == 3


def test_usage_is_null_when_it_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write_output(path, [OutputRow("a", "x", "stop", None, 2)], openai=OpenAIOutput("m"))
    assert read_back(path)[0]["response"]["body"]["usage"] is None


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, {"b": [1, None], "a": "é\u2028\ud800"})
    assert path.read_bytes().decode() == (
        '{\n  "b": [\n    1,\n    null\n  ],\n  "a": "é\\u2028\\ud800"\n}\n'
    )
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"rate": float("nan")})
    assert json.loads(path.read_text())["b"] == [1, None]
    assert names(tmp_path) == ["manifest.json"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "text", ["", "a\rb\r\nc\nd", "\0\x1f", "a\x85b\u2028c\u2029d", "=1+1", "😀"]
)
def test_texts_that_are_easily_lost(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"out{suffix}"
    write_output(path, [OutputRow("a", text), OutputRow("b", text)])
    assert [row["text"] for row in read_back(path)] == [text, text]


def test_jsonl_is_one_line_a_row_for_every_reader(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write_output(path, [OutputRow("a\x85", "\u2028\u2029\x0b\x0c\x1c\x1d\x1e\r")] * 3)
    assert len(path.read_bytes().decode().splitlines()) == 3


@pytest.mark.parametrize(
    ("suffix", "expected"),
    [(".jsonl", "a\ud800b"), (".csv", "a\\ud800b"), (".parquet", "a\\ud800b")],
)
def test_half_a_surrogate_pair_is_written_escaped(
    tmp_path: Path, suffix: str, expected: str
) -> None:
    path = tmp_path / f"out{suffix}"
    write_output(path, [OutputRow("a", "a\ud800b")])
    assert read_back(path)[0]["text"] == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    assert write_output(path, []) == 0
    assert read_back(path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_rows_make_equal_bytes(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in ("a", "b")]
    for path in paths:
        write_output(path, iter(ROWS))
    assert paths[0].read_bytes() == paths[1].read_bytes()


IDS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(st.characters(codec="utf-8"), min_size=1))
TEXTS = st.text(st.characters(codec="utf-8"))


@given(rows=st.lists(st.tuples(IDS, TEXTS)), suffix=st.sampled_from(SUFFIXES))
def test_any_text_survives_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, str]], suffix: str
) -> None:
    path = tmp_path_factory.mktemp("law") / f"out{suffix}"
    assert write_output(path, (OutputRow(row_id, text) for row_id, text in rows)) == len(rows)
    keep = (lambda row_id: row_id) if suffix == ".jsonl" else str
    read = [(row["id"], row["text"]) for row in read_back(path)]
    assert read == [(keep(row_id), text) for row_id, text in rows]


# --- where it is written ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.jsonl", "jsonl"), ("A.CSV", "csv"), ("a.b.parquet", "parquet"), ("a.jsonl.gz", "jsonl")],
)
def test_format(name: str, expected: str) -> None:
    assert output_format(Path(name)) == expected


@pytest.mark.parametrize("name", ["a.txt", "a", "-", "a.jsonl.bz2", ".jsonl"])
def test_unknown_format(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        output_format(Path(name))
    assert ".csv.zst, .parquet" in raised.value.hint


def test_openai_lines_need_jsonl(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="OpenAI batch output is JSONL"):
        write_output(tmp_path / "out.csv", ROWS, openai=OpenAIOutput("m"))


@pytest.mark.parametrize("row", [{}, {"text": "x", "error_code": "y"}])
def test_a_row_is_a_completion_or_an_error(row: Any) -> None:
    with pytest.raises(AssertionError):
        OutputRow("a", **row)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_on_the_way_leaves_what_was_there(
    tmp_path: Path, suffix: str, error: type[BaseException]
) -> None:
    def rows() -> Iterator[OutputRow]:
        yield DONE
        raise error

    path = tmp_path / f"out{suffix}"
    path.write_text("before")
    with pytest.raises(error):
        write_output(path, rows())
    assert path.read_text() == "before"
    assert names(tmp_path) == [path.name]


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file").touch()
    for name, words, hint in [
        ("none/out.jsonl", "No such file", "create the folder first"),
        ("file/out.jsonl", "Not a directory", "a part of the path is a file"),
        ("folder.jsonl", "Is a directory", "it is a folder"),
        ("x" * 300 + ".jsonl", "File name too long", "choose a shorter name"),
    ]:
        with pytest.raises(OutputError, match=words) as raised:
            write_output(tmp_path / name, ROWS)
        assert hint in raised.value.hint
    assert names(tmp_path) == ["file", "folder.jsonl"]


def test_a_folder_where_nothing_may_be_written() -> None:
    if os.geteuid() == 0:
        folder, words = Path("/proc/self"), "No such file|Permission|not permitted|Read-only"
    else:
        folder, words = Path("/"), "Permission denied|Read-only"
    with pytest.raises(OutputError, match=words):
        write_output(folder / "out.jsonl", ROWS)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_may_grow_no_further(tmp_path: Path, suffix: str) -> None:
    """The limit of the process stands for a full disk: both are an OSError while writing."""
    path = tmp_path / f"out{suffix}"
    path.write_text("before")
    old_limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    rows = (OutputRow(n, os.urandom(500).hex()) for n in range(5000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, old_limits[1]))
    try:
        with pytest.raises(OutputError, match="File too large") as raised:
            write_output(path, rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limits)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert raised.value.hint
    assert path.read_text() == "before"
    assert names(tmp_path) == [path.name]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OutputError, match="No space left") as raised:
        write_json(tmp_path / "manifest.json", {})
    assert "free some space" in raised.value.hint
    assert names(tmp_path) == []


def test_what_a_killed_export_left_behind_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    program = (
        "import os, signal, sys; from pathlib import Path; from packhorse.outputs import *\n"
        "def rows():\n"
        "    yield OutputRow('a', 'x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_output(Path(sys.argv[1]), rows())\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    write_output(tmp_path / "other.jsonl", ROWS)
    assert len(names(tmp_path)) == 2
    write_output(path, ROWS)
    assert names(tmp_path) == ["other.jsonl", "out.jsonl"]


def test_the_longest_name(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 249 + ".jsonl")
    assert write_output(path, ROWS) == 3


def test_a_link_stays_and_leads_to_the_new_output(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "out.jsonl"
    link.symlink_to(tmp_path / "real" / "out.jsonl")
    write_output(link, ROWS)
    assert link.is_symlink()
    assert len(read_back(tmp_path / "real" / "out.jsonl")) == 3


def test_the_output_has_the_permissions_of_an_ordinary_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write_output(path, ROWS)
    (tmp_path / "ordinary").touch()
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode
