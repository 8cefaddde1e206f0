"""Stored digests of files that did not change."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from packhorse.models import hashing
from packhorse.models.hashing import STORED_BYTES, file_sha256, verify_all


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files whose bytes were read."""
    found: list[Path] = []
    compute = hashing._compute

    def counted(path: Path) -> str:
        found.append(path)
        return compute(path)

    monkeypatch.setattr(hashing, "_compute", counted)
    monkeypatch.setattr(hashing, "_SETTLED_SECONDS", -1.0)
    monkeypatch.setenv("PACKHORSE_HOME", str(tmp_path / "home"))
    return found


def test_an_unchanged_file_is_read_once(tmp_path: Path, read: list[Path]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * STORED_BYTES)
    expected = sha256(path.read_bytes()).hexdigest()
    assert [file_sha256(path) for _ in range(3)] == [expected] * 3
    assert len(read) == 1
    with verify_all():
        assert file_sha256(path) == expected
    assert len(read) == 2


def test_a_changed_file_is_read_again(tmp_path: Path, read: list[Path]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * STORED_BYTES)
    before = path.stat()
    first = file_sha256(path)
    path.write_bytes(b"b" * STORED_BYTES)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_sha256(path) == sha256(path.read_bytes()).hexdigest() != first
    path.write_bytes(b"b" * (STORED_BYTES + 1))
    assert file_sha256(path) == sha256(path.read_bytes()).hexdigest()


def test_a_damaged_or_missing_store_costs_time_only(tmp_path: Path, read: list[Path]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * STORED_BYTES)
    first = file_sha256(path)
    (stored,) = (tmp_path / "home" / "digests").iterdir()
    stored.write_text("{")
    assert file_sha256(path) == first
    assert len(read) == 2


def test_a_file_that_just_changed_is_not_stored(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_SETTLED_SECONDS", 60.0)
    path = tmp_path / "weights"
    path.write_bytes(b"a" * STORED_BYTES)
    assert file_sha256(path) == file_sha256(path)
    assert len(read) == 2
