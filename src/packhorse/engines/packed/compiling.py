"""Numba functions that are compiled once for a machine and kept."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import njit

from packhorse.models.storage import cache_root

F = TypeVar("F", bound=Callable[..., Any])
_kernels: list[Any] = []


def kernel(function: F) -> F:
    """Compiles a function that Python calls, without the interpreter's lock while it runs."""
    usual = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(kernel_folder())
    try:
        compiled: Any = njit(nogil=True, cache=True)(function)
    finally:
        numba.config.CACHE_DIR = usual
    _kernels.append(compiled)
    return compiled  # type: ignore[no-any-return]


def inlined(function: F) -> F:
    """Compiles a function into the kernels that call it."""
    return njit(forceinline=True)(function)  # type: ignore[no-any-return]


def count_compiled_kernels() -> int:
    """Kernels that this process had to compile because none was kept."""
    return sum(sum(each.stats.cache_misses.values()) for each in _kernels)


@cache
def kernel_folder() -> Path:
    """Where compiled kernels are kept: NUMBA_CACHE_DIR, else packhorse's cache; where it cannot be
    written, a temporary folder. Each state of these sources has a folder of its own: Numba looks
    only at the file of a function."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    root = Path(numba.config.CACHE_DIR or cache_root() / "kernels")
    folder = root / f"packed-{digest}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="packhorse-kernels-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
