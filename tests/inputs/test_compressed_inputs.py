"""Compressed inputs and outputs: the same rows, and one clear line for a damaged file."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import packhorse
from packhorse.config import InputConfig, JobConfig, OutputConfig
from packhorse.data import Request
from packhorse.errors import ConfigError, InputError
from packhorse.inputs import detect_format, read_rows
from packhorse.storage.compressed_files import open_content


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def packed(data: bytes) -> bytes:
    """Return data compressed with gzip, the same at any time: names of tests hold it."""
    return gzip.compress(data, mtime=0)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": packed, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd,
    ".ZST": zstd, ".gzip": packed,
}  # fmt: skip
CONTENTS = {
    "rows.jsonl": "".join(
        json.dumps({"id": n, "prompt": f"row {n} \u00e9"}) + "\n" for n in range(50)
    ),
    "rows.csv": "id,prompt\n" + "".join(f'{n},"row {n}\nof two lines"\n' for n in range(50)),
    "semicolons.csv": "sep=;\nid;prompt\n1;one\n",
    "rows.tsv": "id\tprompt\n" + "".join(f"{n}\trow {n}\n" for n in range(50)),
    "rows.txt": "\ufeffone\n\ntwo\r\nthree",
    "batch.jsonl": json.dumps(
        {"custom_id": "a", "url": "/v1/completions", "body": {"model": "m", "prompt": "x"}}
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", CONTENTS)
def test_rows_are_those_of_the_file_inside(name: str, suffix: str, tmp_path: Path) -> None:
    data = CONTENTS[name].encode()
    plain, packed = tmp_path / name, tmp_path / f"{name}{suffix}"
    plain.write_bytes(data)
    packed.write_bytes(PACKERS[suffix](data))
    assert detect_format(packed) == detect_format(plain)
    expected = list(read_rows(plain, InputConfig()))
    assert list(read_rows(packed, InputConfig())) == expected
    assert all(isinstance(row, Request) for row in expected)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_parts_after_each_other_are_read_whole(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.txt{suffix}"
    path.write_bytes(PACKERS[suffix](b"one\n") + PACKERS[suffix](b"two\n"))
    assert [row.content for row in read_rows(path, InputConfig()) if isinstance(row, Request)] == [
        "one", "two",
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_file_that_was_cut_off_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.txt{suffix}"
    content = PACKERS[suffix]("".join(f"row {n}\n" for n in range(100_000)).encode())
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(InputError, match=r"rows\.txt\.\w+ is damaged after [\d,]+ bytes"):
        list(read_rows(path, InputConfig()))


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt.gz"
    content = bytearray(packed("".join(f"row {n}\n" for n in range(9999)).encode()))
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged after"):
        list(read_rows(path, InputConfig()))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.jsonl.gz", b'{"prompt": "one"}\n', "is not compressed with gzip, as its name says"),
        ("rows.jsonl.gz", b"", "is empty"),
        ("rows.jsonl.gz", packed(b""), "is empty"),
        ("rows.jsonl.gz", packed(packed(b'{"prompt": "one"}\n')), "compressed with"),
        ("rows.gz", packed(b'{"prompt": "one"}\n'), "ends in nothing before .gz"),
        ("rows.jsonl", packed(b'{"prompt": "one"}\n'), "is compressed with gzip"),
        ("rows.parquet.gz", packed(b"PAR1"), "a Parquet file inside a compressed one"),
        ("rows.jsonl.gz", packed(b"\xff\xfe{\0"), "is UTF-16"),
        ("rows.jsonl.lz4", b"\x04\x22\x4d\x18abcd", "is compressed with lz4"),
    ],
)  # fmt: skip
def test_files_that_are_something_else_are_refused(
    name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        list(read_rows(path, InputConfig()))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".csv.gz", ".csv.zst"])
def test_outputs_are_compressed_by_their_name(suffix: str, tmp_path: Path) -> None:
    source = tmp_path / "rows.csv.gz"
    source.write_bytes(packed(b"id,prompt,more\na,one,1\nb,two,2\n"))
    written = {}
    for name in (f"one{suffix}", f"two{suffix}", f"plain{suffix.rpartition('.')[0]}"):
        output = tmp_path / name
        packhorse.run(
            JobConfig(
                model="fake", input=str(source), output=output,
                engine=packhorse.EngineConfig(engine="fake"), writing=OutputConfig(keep="all"),
            )
        )  # fmt: skip
        written[name] = output.read_bytes()
        with open_content(output) as file:
            content = file.read()
    assert written[f"one{suffix}"] == written[f"two{suffix}"]
    with open_content(tmp_path / f"one{suffix}") as file:
        assert file.read() == content
    assert b"more" in content


@pytest.mark.parametrize("name", ["out.jsonl.bz2", "out.parquet.gz", "out.gz", "out.txt.gz"])
def test_other_names_of_outputs_are_refused(name: str, tmp_path: Path) -> None:
    source = tmp_path / "rows.txt"
    source.write_text("one\n")
    fake = packhorse.EngineConfig(engine="fake")
    with pytest.raises(ConfigError) as raised:
        packhorse.run(
            JobConfig(model="fake", input=str(source), output=tmp_path / name, engine=fake)
        )
    assert ".jsonl.gz" in raised.value.hint
