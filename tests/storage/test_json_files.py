from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from packhorse.errors import InputError, ModelError
from packhorse.storage.json_files import decode, parse_json, read_json, read_object


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "is not JSON: "),
        (b"<!DOCTYPE html>", "is not JSON: "),
        (b"\xff\xfe{\0}\0", "is not UTF-8: byte 0 is 0xff"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"[" * 200_000, "is nested more than 64 levels deep"),
        (b"[" * 70 + b"]" * 70, "is nested more than 64 levels deep"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "is nested more than 64 levels deep"),
        (b'{"a": 1, "a": 2}', "has two different values for 'a'"),
        (b'{"a": true, "a": 1}', "has two different values for 'a'"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON: "),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
    ],
)
def test_what_cannot_be_read(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign.json"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_values_that_a_parser_may_take_differently() -> None:
    assert parse_json(b'{"a": 1, "a": 1}') == {"a": 1}
    assert parse_json(b'{"limit": [0.0, Infinity]}') == {"limit": [0.0, float("inf")]}
    with pytest.raises(ValueError, match="holds NaN, which is not JSON"):
        parse_json(b'{"a": NaN}', allow_nan=False)


def test_files_that_are_no_documents(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ModelError, match="is not a regular file"):
        read_json(tmp_path / "pipe.json")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_json(tmp_path / "none.json", error=InputError)
    (tmp_path / "large.json").write_bytes(b" " * 100 + b"{}")
    with pytest.raises(ModelError, match="has 102 bytes, more than the 50 allowed"):
        read_json(tmp_path / "large.json", max_bytes=50)
    (tmp_path / "list.json").write_bytes(b"[]")
    with pytest.raises(ModelError, match="must hold a JSON object, not a list"):
        read_object(tmp_path / "list.json")


class Pair(NamedTuple):
    left: int
    right: float = 0.5


@dataclass(frozen=True)
class Part:
    name: str
    pairs: tuple[Pair, ...]
    kind: Literal["a", "b"] = "a"
    limit: int | None = None


def test_decoding() -> None:
    document = {"name": "x", "pairs": [{"left": 1}, {"left": 2, "right": 3}], "new": "skipped"}
    assert decode(Part, document, "part") == Part("x", (Pair(1), Pair(2, 3.0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 5}, "part.name must be a text, got 5"),
        ({"pairs": {}}, "part.pairs must be a list, got {}"),
        ({"pairs": [3]}, r"part.pairs\[0\] must be an object, got 3"),
        ({"pairs": [{}]}, r"part.pairs\[0\] has no left"),
        ({"pairs": [{"left": True}]}, r"part.pairs\[0\].left must be a whole number, got True"),
        ({"pairs": [{"left": 1, "right": 10**400}]}, "too large a number: 10000"),
        ({"kind": ["a"]}, r"part.kind must be one of 'a', 'b', got \['a'\]"),
        ({"limit": "3"}, "part.limit must be a whole number, got '3'"),
        ({"name": ["x" * 200]}, r"got \['x{58}\.\.\.$"),
    ],
)
def test_decoding_what_has_another_type(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(Part, {"name": "x", "pairs": [], **changes}, "part")
