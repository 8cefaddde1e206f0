"""Digests of files, and the one digest that says whether two models are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes (hex), read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """File name -> sha256 of `names`, paths relative to `folder` with forward slashes."""
    return {name: file_sha256(folder / name) for name in sorted(names)}


def fingerprint(digests: Mapping[str, str]) -> str:
    """sha256 (hex) over the sorted (file name, sha256) list: equal content, equal fingerprint."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()
