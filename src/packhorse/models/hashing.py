"""Digests of files, and the fingerprint of a model.

The digest of a large file is stored, and used again as long as the file keeps its device, inode,
size and times:

    $PACKHORSE_HOME/digests/<device>-<inode>.json    size, mtime_ns, ctime_ns, sha256

`verify_all` reads every byte instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from packhorse.errors import ModelError, OutputError
from packhorse.storage.atomic_files import write_json
from packhorse.storage.cache_folder import cache_root
from packhorse.storage.json_files import read_object

STORED_BYTES = 1 << 20
"""Smallest file whose digest is stored."""
_SETTLED_SECONDS = 2.0
"""Age from which a change of a file surely changes its times, whatever the resolution of both."""
_verifies_all: ContextVar[bool] = ContextVar("verifies_all", default=False)


@contextmanager
def verify_all(enabled: bool = True) -> Iterator[None]:
    """Use no stored digest within the context if `enabled`."""
    token = _verifies_all.set(enabled or _verifies_all.get())
    try:
        yield
    finally:
        _verifies_all.reset(token)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file (hex), read unless it is stored."""
    if digest := stored_sha256(path):
        return digest
    found, started = path.stat(), time.time()
    digest = _compute(path)
    stored = _stored_path(found)
    is_settled = started - max(found.st_mtime, found.st_ctime) > _SETTLED_SECONDS
    if stored is not None and is_settled and found.st_size >= STORED_BYTES:
        with suppress(OSError, OutputError):  # a cache that cannot be written costs time only
            stored.parent.mkdir(parents=True, exist_ok=True)
            write_json(stored, {**_stamp(found), "sha256": digest})
    return digest


def stored_sha256(path: Path) -> str:
    """Return the stored sha256 of a file that did not change since; "" if it must be read."""
    found = path.stat()
    stored = _stored_path(found)
    if found.st_size < STORED_BYTES or stored is None or _verifies_all.get():
        return ""
    with suppress(ModelError, OSError):
        document = read_object(stored)
        digest = document.pop("sha256", "")
        if document == _stamp(found):
            return str(digest)
    return ""


def _stamp(found: os.stat_result) -> dict[str, int]:
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}


def _stored_path(found: os.stat_result) -> Path | None:
    try:
        return cache_root() / "digests" / f"{found.st_dev}-{found.st_ino}.json"
    except ModelError:
        return None


def _compute(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of each file; `names` are relative to `folder`, with forward slashes."""
    return {name: file_sha256(folder / name) for name in sorted(names)}


def fingerprint(digests: Mapping[str, str]) -> str:
    """Return the sha256 (hex) over the sorted list of (file name, sha256)."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()
