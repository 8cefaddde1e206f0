"""Digests of files, and the fingerprint of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of each file; `names` are relative to `folder`, with forward slashes."""
    return {name: file_sha256(folder / name) for name in sorted(names)}


def fingerprint(digests: Mapping[str, str]) -> str:
    """Return the sha256 (hex) over the sorted list of (file name, sha256)."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()
