"""Numba kernels that are compiled once per machine and cached on disk."""

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

from packhorse.storage.cache_folder import cache_root

F = TypeVar("F", bound=Callable[..., Any])
_kernels: list[Any] = []


def kernel(function: F) -> F:
    """Compile a function that Python calls; it releases the GIL while it runs."""
    usual = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(kernel_folder())
    try:
        compiled: Any = njit(nogil=True, cache=True)(function)
    finally:
        numba.config.CACHE_DIR = usual
    _kernels.append(compiled)
    return compiled  # type: ignore[no-any-return]


def inlined(function: F) -> F:
    """Compile a function into the kernels that call it."""
    return njit(forceinline=True)(function)  # type: ignore[no-any-return]


def count_compiled_kernels() -> int:
    """Return the number of kernels that this process compiled because none was cached."""
    return sum(sum(each.stats.cache_misses.values()) for each in _kernels)


@cache
def kernel_folder() -> Path:
    """Return the folder of cached kernels.

    The folder lies in NUMBA_CACHE_DIR, else in packhorse's cache; if that is not writable, it is a
    temporary folder. Its name depends on the source of all kernels, because Numba checks only the
    file of a function and not the files that it calls.
    """
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
