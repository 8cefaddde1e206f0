"""Formats, lines, jobs that cannot be, and laws. What one row may hold: test_sources_rows.py;
CSV and Parquet: test_sources_tables.py."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import re
import sqlite3
import tarfile
import tracemalloc
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_files import batch_line, chat, jsonl, read_content, summary
from packhorse.config import InputConfig
from packhorse.errors import ConfigError, InputError
from packhorse.inputs import detect_format, lines, read_rows

ANY_TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@pytest.fixture
def read(tmp_path: Path) -> Any:
    return partial(read_content, tmp_path)


# --- formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"prompt": "x"}', "jsonl"),
        ("a.JSONL", '{"prompt": "x"}', "jsonl"),
        ("a.ndjson", '{"prompt": "x"}', "jsonl"),
        ("a.json", '{"prompt": "x"}', "jsonl"),
        ("a.jsonl", '\n \n{"custom_id": "1", "url": "/v1/completions"}', "openai-batch"),
        ("a.jsonl", '{"custom_id": "1", "body": {}}', "openai-batch"),
        ("a.jsonl", '{"custom_id": "1", "prompt": "x"}', "jsonl"),
        ("a.jsonl", '{"cut off\n{"custom_id": "1", "body": {}}', "openai-batch"),
        ("a.jsonl", "[" * 100_000 + '\n{"custom_id": "1", "body": {}}', "openai-batch"),
        ("a.jsonl", "not JSON", "jsonl"),
        ("a.csv", "prompt\nx", "csv"),
        ("a.tsv", "prompt\nx", "csv"),
        ("a.parquet", "PAR1", "parquet"),
        ("a.txt", '{"prompt": "x"}', "text"),
        ("a.stdin", '\ufeff\n  {"prompt": "x"}', "jsonl"),
        ("a.stdin", '{"custom_id": "1", "body": {}}', "openai-batch"),
        ("a.stdin", "Why?\n{}", "text"),
        ("a.stdin", "\n\n", "text"),
    ],
)
def test_format(tmp_path: Path, name: str, content: str, expected: str) -> None:
    (tmp_path / name).write_text(content)
    assert detect_format(tmp_path / name) == expected


# --- lines -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\ntwo", [("line-1", 1, "one"), ("line-2", 2, "two")]),
        ("a.txt", "\ufeffone\r\n\r\n \t\ntwo\r\n", [("line-1", 1, "one"), ("line-4", 4, "two")]),
        ("a.txt", " a \x0b\x0c\x85\u2028\rb \n", [("line-1", 1, " a \x0b\x0c\x85\u2028\rb ")]),
        ("a.txt", "a\0b\n\ufeffc\n", [("line-1", 1, "a\0b"), ("line-2", 2, "\ufeffc")]),
        ("a.txt", "\u3000\nx", [("line-1", 1, "empty_prompt"), ("line-2", 2, "x")]),
        ("a.jsonl", '\n{"id": "a", "prompt": "x"}\r\n', [("a", 2, "x")]),
        ("a.jsonl", '\ufeff{"id": 7, "prompt": "x"}', [(7, 1, "x")]),
        ("a.jsonl", '{"id": null, "prompt": "x"}', [("line-1", 1, "x")]),
        ("a.jsonl", '{"id": 0, "prompt": "x\\u0000"}', [(0, 1, "x\0")]),
        ("a.jsonl", '{"prompt": "a\u2028\x85b"}', [("line-1", 1, "a\u2028\x85b")]),
        ("a.jsonl", '{"prompt": "x",\r "extra": NaN}', [("line-1", 1, "x")]),
        ("a.jsonl", '{"prompt": "x", "prompt": "y"}', [("line-1", 1, "y")]),
        ("a.jsonl", '{"prompt": "x", "messages": null}', [("line-1", 1, "x")]),
        ("a.jsonl", '{"prompt": "<|im_end|>"}', [("line-1", 1, "<|im_end|>")]),
        ("a.jsonl", '{"prompt": "\\ud83d\\ude00"}', [("line-1", 1, "\U0001f600")]),
        ("a.stdin", "Why?", [("line-1", 1, "Why?")]),
    ],
)
def test_good_lines(read: Any, name: str, content: str, expected: Any) -> None:
    rows = read(name, content)
    assert [summary(row) for row in rows] == expected
    assert [row.index for row in rows] == list(range(len(rows)))


FAULTS: list[tuple[bytes | str, str, str]] = [
    ('{"prompt": "x"', "malformed_json", "column 15"),
    ('{"prompt": "a\tb"}', "malformed_json", "column 14"),
    ('{"prompt": x}', "malformed_json", "column 12"),
    ("{'prompt': 'x'}", "malformed_json", "column 2"),
    ('{"prompt": "x"} {}', "malformed_json", "Extra data"),
    ("[" * 100_000, "malformed_json", "nested too deeply"),
    ('{"prompt": "x", "a":' * 100_000, "malformed_json", "nested too deeply"),
    ('{"prompt": "x", "n": ' + "9" * 5000 + "}", "malformed_json", "digits"),
    ('["x"]', "not_an_object", "a list"),
    ('"x"', "not_an_object", "'x'"),
    ("3", "not_an_object", "3"),
    ("null", "not_an_object", "null"),
    ("{}", "missing_prompt", "--prompt-column"),
    ('{"text": "x", "\\ud800": 1}', "missing_prompt", "only 'text', '\\ud800'"),
    ('{"prompt": null}', "missing_prompt", "null"),
    ('{"messages": null}', "missing_prompt", "'messages' is null"),
    ('{"prompt": ""}', "empty_prompt", "blank"),
    ('{"prompt": " \\n\\u2028"}', "empty_prompt", "blank"),
    ('{"prompt": 3}', "bad_prompt", "3"),
    ('{"prompt": NaN}', "bad_prompt", "nan"),
    ('{"prompt": ["x"]}', "bad_prompt", "a list"),
    ('{"prompt": "x", "messages": []}', "bad_prompt", "both"),
    ('{"messages": []}', "bad_messages", "empty"),
    ('{"messages": "x"}', "bad_messages", "'x'"),
    ('{"messages": {"role": "user"}}', "bad_messages", "an object"),
    ('{"messages": ["x"]}', "bad_messages", "message 1 is 'x'"),
    ('{"messages": [{"content": "x"}]}', "bad_messages", "role null"),
    ('{"messages": [{"role": 1, "content": "x"}]}', "bad_messages", "role 1"),
    ('{"messages": [{"role": "user"}]}', "bad_messages", "content null"),
    ('{"messages": [{"role": "user", "content": 1}]}', "bad_messages", "content 1"),
    ('{"messages": [{"role": "user", "content": ["x"]}]}', "bad_messages", "parts"),
    ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "bad_messages", "null"),
    (
        '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        "unsupported_content",
        "'image_url'",
    ),
    ('{"messages": [{"role": "user", "content": " "}]}', "empty_prompt", "blank"),
    ('{"messages": [{"role": "user", "content": []}]}', "empty_prompt", "blank"),
    (
        '{"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": ""}]}',
        "empty_prompt",
        "blank",
    ),
    ('{"prompt": "\\ud800"}', "invalid_unicode", "surrogate"),
    ('{"messages": [{"role": "user", "content": "\\udfff"}]}', "invalid_unicode", "surrogate"),
    ('{"id": "\\ud800", "prompt": "x"}', "invalid_unicode", "surrogate"),
    ('{"prompt": "x", "stop": "\\ud800"}', "invalid_unicode", "surrogate"),
    (b'{"prompt": "caf\xe9"}', "invalid_utf8", "byte 16 of the line (0xe9)"),
    (b'{"prompt": "\xed\xa0\x80"}', "invalid_utf8", "byte 13"),
    ('{"id": true, "prompt": "x"}', "bad_id", "true"),
    ('{"id": NaN, "prompt": "x"}', "bad_id", "got nan"),
    ('{"id": -Infinity, "prompt": "x"}', "bad_id", "got -inf"),
    ('{"id": 0.' + "1" * 4300 + ', "prompt": "x"}', "bad_id", "at most 4,300 digits"),
    ('{"id": [1], "prompt": "x"}', "bad_id", "a list"),
    ('{"id": "", "prompt": "x"}', "bad_id", "empty"),
    ('{"prompt": "x", "max_tokens": -1}', "bad_option", "got -1"),
    ('{"prompt": "x", "max_new_tokens": 4294967296}', "bad_option", "2147483647"),
    ('{"prompt": "x", "max_new_tokens": 1.0}', "bad_option", "1.0"),
    ('{"prompt": "x", "max_new_tokens": true}', "bad_option", "true"),
    ('{"prompt": "x", "max_new_tokens": 1, "max_tokens": 2}', "bad_option", "keep one"),
    ('{"prompt": "x", "temperature": -0.1}', "bad_option", "from 0 to 100"),
    ('{"prompt": "x", "temperature": NaN}', "bad_option", "nan"),
    ('{"prompt": "x", "temperature": 1e999}', "bad_option", "inf"),
    (
        '{"prompt": "x", "temperature": 1' + "0" * 400 + "}",
        "bad_option",
        "temperature must be a number from 0 to 100, got 10",
    ),
    ('{"prompt": "x", "temperature": "1"}', "bad_option", "'1'"),
    ('{"prompt": "x", "top_p": -0.1}', "bad_option", "got -0.1"),
    ('{"prompt": "x", "top_p": 1.01}', "bad_option", "from 0 to 1"),
    ('{"prompt": "x", "top_k": -2}', "bad_option", "got -2"),
    ('{"prompt": "x", "seed": -2}', "bad_option", "got -2"),
    ('{"prompt": "x", "seed": 9223372036854775808}', "bad_option", "got 9223372036854775808"),
    ('{"prompt": "x", "stop": ""}', "bad_option", "got ''"),
    ('{"prompt": "x", "stop": ["a", ""]}', "bad_option", "a list"),
    ('{"prompt": "x", "stop": 3}', "bad_option", "got 3"),
    (jsonl({"prompt": "x", "stop": ["a"] * 17})[:-1], "bad_option", "at most 16"),
]


@pytest.mark.parametrize(("line", "code", "words"), FAULTS)
def test_a_bad_line_is_one_failure(read: Any, line: bytes | str, code: str, words: str) -> None:
    raw = line.encode("utf-8") if isinstance(line, str) else line
    rows = read("a.jsonl", b'{"prompt": "before"}\n' + raw + b'\n{"prompt": "after"}\n')
    assert [summary(row) for row in rows] == [
        ("line-1", 1, "before"),
        ("line-2", 2, code),
        ("line-3", 3, "after"),
    ]
    failure = rows[1]
    assert words in failure.message
    assert failure.index == 1
    assert len(failure.key) == 32
    assert len(failure.message) < 250
    failure.message.encode()  # no half surrogate gets into the journal


def test_a_failure_has_the_id_of_its_row_when_it_could_be_read(read: Any) -> None:
    rows = read("a.jsonl", jsonl({"id": "a"}, {"id": 0, "prompt": ""}))
    assert [row.id for row in rows] == ["a", 0]


def test_invalid_utf8_in_text_costs_that_line(read: Any) -> None:
    rows = read("a.txt", b"one\ntw\xff\nthree\xc3")
    assert [summary(row)[2] for row in rows] == ["one", "invalid_utf8", "invalid_utf8"]


def test_a_line_that_is_too_long_costs_that_line(
    read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 8)
    rows = read("a.txt", "12345678\n123456789\nab\n" + "x" * 3_000_000 + "\n1234567\r\n123456789")
    assert [summary(row) for row in rows] == [
        ("line-1", 1, "12345678"),
        ("line-2", 2, "line_too_long"),
        ("line-3", 3, "ab"),
        ("line-4", 4, "line_too_long"),
        ("line-5", 5, "1234567"),
        ("line-6", 6, "line_too_long"),
    ]
    assert len({row.key for row in rows}) == 6


def test_a_line_of_100_mb_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"prompt": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"prompt": "after"}\n')
    tracemalloc.start()
    try:
        rows = list(read_rows(path, InputConfig()))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [summary(row)[2] for row in rows] == ["line_too_long", "after"]
    assert peak_bytes < 2.5 * lines.MAX_LINE_BYTES


@pytest.mark.slow
def test_rows_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(jsonl(*({"id": n, "prompt": "x" * 1000} for n in range(10_000))))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(path, InputConfig())) == 10_000
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2_500_000  # of 10 million in the file


# --- jobs that cannot be ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "config", "words"),
    [
        ("a.xlsx", "x", {}, "ends in .xlsx"),
        ("a.jsonl.lz4", "x", {}, "ends in .lz4"),
        ("a", "x", {}, "ends in nothing"),
        ("a.jsonl", "", {}, "is empty"),
        ("a.jsonl", "\n \r\n\n", {}, "has no rows"),
        ("a.txt", "\ufeff\n", {}, "has no rows"),
        ("a.json", '[{"prompt": "x"}]', {}, "one JSON array"),
        ("a.jsonl", b"\xff\xfe{\0", {}, "UTF-16"),
        ("a.txt", "x", {"prompt_column": "q"}, "has no column 'q'; it has 'prompt', 'text'"),
        ("a.txt", "x", {"template": "{txt}"}, "has no column 'txt'"),
    ],
)
def test_unusable_input(read: Any, name: str, content: Any, config: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        read(name, content, **config)
    assert raised.value.hint


GZIP = gzip.compress(b'{"prompt": "x"}\n', mtime=0)
EXCEL = b"PK\x03\x04" + bytes(40) + b"xl/workbook.xmlPK\x05\x06" + bytes(18)
PAGE = b"<!DOCTYPE html>\n<html><body>404</body></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n"


def tar_archive() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jsonl"), io.BytesIO(b""))
    return content.getvalue()


def sqlite_database(folder: Path) -> bytes:
    with closing(sqlite3.connect(folder / "a.db")) as connection:
        connection.execute("CREATE TABLE t (prompt)")
    return (folder / "a.db").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "what", "advice"),
    [
        ("a.jsonl", GZIP, "compressed with gzip", "zcat {path} | packhorse run MODEL -"),
        ("a.parquet", GZIP, "compressed with gzip", "zcat {path} > unpacked.parquet"),
        ("a.tar.gz", GZIP, "ends in .tar before .gz", "tar -xf {path}"),
        ("a.jsonl.gz", gzip.compress(tar_archive(), mtime=0), "a tar archive", "tar -xf {path}"),
        ("a.stdin", GZIP, "standard input is compressed with gzip", "zcat FILE | packhorse run"),
        ("a.txt", bz2.compress(b"x"), "compressed with bzip2", "bzcat"),
        ("a.txt", lzma.compress(b"x"), "compressed with xz", "xzcat"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd\x04\0x", "compressed with zstd", "zstdcat"),
        ("a.txt", b"\x04\x22\x4d\x18x", "compressed with lz4", "lz4cat"),
        ("a.jsonl", tar_archive(), "a tar archive", "tar -xf {path}"),
        ("a.csv", b"PK\x03\x04" + bytes(60), "a ZIP archive", "unzip {path}"),
        ("a.csv", EXCEL, "an Excel workbook", "CSV UTF-8"),
        ("a.xlsx", EXCEL, "an Excel workbook", "CSV UTF-8"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Excel or Word", "CSV UTF-8"),
        ("a.csv", b"SQLite format 3\0" + bytes(80), "an SQLite database", "sqlite3 -csv"),
        ("a.csv", b"PAR1\x15\0PAR1", "a Parquet file", "end in .parquet"),
        ("a.parquet", b"ARROW1\0\0" + bytes(9), "an Arrow (Feather) file", "write_table"),
        ("a.parquet", b"\xff\xff\xff\xff\x78\0", "an Arrow stream", "to_parquet"),
        ("a.jsonl", pickle.dumps([{"prompt": "x"}]), "a Python pickle", "loads no pickle"),
        ("a.jsonl", b"GGUF\x03\0\0\0\0", "a model, not rows", "packhorse run MODEL INPUT"),
        ("a.txt", b"%PDF-1.7\n", "a PDF file", "pdftotext"),
        ("a.jsonl", PAGE, "a web page", "error page"),
        ("a.txt", PAGE, "a web page", "error page"),
        ("a.csv", b'<?xml version="1.0"?><Error/>', "XML", "error page"),
        ("a.parquet", POINTER, "a Git LFS pointer", "git lfs pull"),
        ("a.jsonl", POINTER, "a Git LFS pointer", "git lfs pull"),
        ("a.csv", "id,prompt".encode("utf-16"), "UTF-16, not UTF-8", "-f UTF-16 "),
        ("a.csv", "id,prompt".encode("utf-16-le"), "UTF-16 without", "-f UTF-16LE "),
        ("a.jsonl", '{"prompt": 1}'.encode("utf-16-be"), "UTF-16 without", "-f UTF-16BE "),
        ("a.txt", "x".encode("utf-32"), "UTF-32, not UTF-8", "-f UTF-32 "),
    ],
)
def test_foreign_files_are_named(
    read: Any, tmp_path: Path, name: str, content: bytes, what: str, advice: str
) -> None:
    with pytest.raises(InputError, match=re.escape(what)) as raised:
        read(name, content)
    assert advice.format(path=tmp_path / name) in raised.value.hint


def test_a_real_sqlite_database_is_named(read: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SQLite"):
        read("a.csv", sqlite_database(tmp_path))


@pytest.mark.parametrize(
    "content",
    ["<html><body>Summarise me.</body></html>\nBZh is a prefix\n", "PAR1 or PAR2?\nx\n",
     "<!DOCTYPE html>", "GGUF is what?\nx\n", "[INST] x\ny\n", "PK\nORC is a format\n"],
)  # fmt: skip
def test_prompts_that_look_like_other_files_are_prompts(read: Any, content: str) -> None:
    assert [row.content for row in read("a.txt", content)] == content.splitlines()


PRETTY = json.dumps({"prompt": "x", "n": [1]}, indent=2)


@pytest.mark.parametrize(
    ("name", "content", "kind", "command"),
    [
        ("a.json", PRETTY, "a JSON object over many lines", "jq -c . "),
        ("a.jsonl", PRETTY, "a JSON object over many lines", "jq -c . "),
        ("a.jsonl", f"\ufeff{PRETTY}\n{PRETTY}\n", "a JSON object over many lines", "jq -c . "),
        ("a.stdin", PRETTY, "standard input is a JSON object", "jq -c . FILE | packhorse run"),
        (
            "a.json",
            json.dumps({"data": [{"prompt": "x"}], "n": [1]}, indent=1),
            "a JSON object over many lines",
            """jq -c '.["data"][]' """,
        ),
        ("a.jsonl", '[{"prompt": "x"}, {"prompt": "y"}]', "one JSON array", "jq -c '.[]' "),
        ("a.jsonl", '[\n{"prompt": "x"},\n{"prompt": "y"}\n]', "one JSON array", "jq -c '.[]' "),
        ("a.stdin", '[\n"x",\n"y"\n]', "standard input is one JSON array", "jq -c '.[]' FILE"),
        ("a.jsonl", '[\n  {"prompt": "x"},\n  {"prompt"', "one JSON array", "jq -c '.[]' "),
        (
            "a.jsonl",
            json.dumps([{"prompt": "x" * 90}] * 20_000, indent=2),
            "one JSON array",
            "jq -c '.[]' ",
        ),
    ],
)
def test_a_json_document_is_not_taken_for_lines(
    read: Any, name: str, content: str, kind: str, command: str
) -> None:
    with pytest.raises(InputError, match=kind) as raised:
        read(name, content)
    assert command in raised.value.hint


@pytest.mark.parametrize(
    ("content", "codes"),
    [
        ('{"prompt": "x",\n"n": 1}\n{"prompt": "y"}\n', ["malformed_json"] * 2 + ["y"]),
        ('{\n{"prompt": "y"}\n', ["malformed_json", "y"]),
        ("{'prompt': 'x'}\n{'prompt': 'y'}\n", ["malformed_json"] * 2),
        ('["x"]\n["y"]\n', ["not_an_object"] * 2),
        ('["x"]', ["not_an_object"]),
        ("{}\n{}\n", ["missing_prompt"] * 2),
    ],
)
def test_lines_with_faults_stay_lines(read: Any, content: str, codes: list[str]) -> None:
    assert [summary(row)[2] for row in read("a.jsonl", content)] == codes


def test_unknown_ending_names_the_known_ones(read: Any) -> None:
    with pytest.raises(InputError) as raised:
        read("a.xlsx", "x")
    assert ".jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt" in raised.value.hint


@pytest.mark.parametrize(
    ("content", "config", "words"),
    [
        ('{"prompt": "x"}', {"template": "{a}", "prompt_column": "a"}, "both"),
        ('{"prompt": "x"}', {"template": "{a}\ud800"}, "template must be Unicode text"),
        ('{"prompt": "x"}', {"system": "\udcc3"}, "at character 1"),
        ('{"prompt": "x"}', {"limit": 0}, "limit must be at least 1 row, got 0"),
        (jsonl(batch_line(chat())), {"template": "{a}"}, "have their own prompts"),
        (jsonl(batch_line(chat())), {"prompt_column": "a"}, "have their own prompts"),
    ],
)
def test_options_that_make_no_sense(read: Any, content: str, config: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read("a.jsonl", content, **config)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "broken.jsonl").symlink_to("/proc/self/mem")  # reading it is an error of the disk
    for name, words in [
        ("none.jsonl", "does not exist"),
        ("folder.jsonl", "is a folder"),
        ("pipe.jsonl", "not an ordinary file"),
        ("broken.jsonl", "cannot be read"),
        ("folder.jsonl/a.jsonl", "does not exist"),
        ("x" * 300 + ".jsonl", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=words):
            detect_format(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        detect_format(path)


def test_job_errors_come_before_the_first_row_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question\nx\n")
    with pytest.raises(InputError):
        read_rows(tmp_path / "a.csv", InputConfig())


def test_limit(read: Any) -> None:
    assert len(read("a.txt", "a\nb\nc\n", limit=2)) == 2
    assert len(read("a.txt", "a\nb\nc\n", limit=9)) == 3


# --- laws ------------------------------------------------------------------------------------


@given(prompts=st.lists(ANY_TEXT, min_size=1), ascii_only=st.booleans())
def test_any_prompt_survives(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str], ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("law") / "a.jsonl"
    rows = [{"id": n, "prompt": prompt} for n, prompt in enumerate(prompts)]
    text = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    path.write_bytes(text.encode())
    assert [summary(row)[::2] for row in read_rows(path, InputConfig())] == list(enumerate(prompts))


@given(content=st.binary(min_size=1), name=st.sampled_from(["a.jsonl", "a.txt", "a.csv"]))
def test_any_bytes_are_rows_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    path = tmp_path_factory.mktemp("law") / name
    path.write_bytes(content)
    try:
        rows = list(read_rows(path, InputConfig()))
    except InputError:
        return
    assert [row.index for row in rows] == list(range(len(rows)))
    assert len({row.key for row in rows}) == len(rows)
    if name != "a.csv":
        assert len(rows) == sum(1 for line in content.split(b"\n") if line.strip())


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_an_abandoned_reader_leaves_no_file_open(read: Any, tmp_path: Path) -> None:
    read("a.txt", "a\nb\n")
    before = open_files()
    rows = read_rows(tmp_path / "a.txt", InputConfig())
    list(islice(rows, 1))
    del rows
    assert open_files() == before
