"""Freed memory is kept, unless the person chose otherwise; in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from packhorse.engines.common.allocator import DEFAULT_VARIABLE

PROGRAM = """
import ctypes, resource, sys
from packhorse.engines.common.allocator import keep_freed_memory
print(keep_freed_memory())
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
size = 48 << 20
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def outcome(**environment: str) -> tuple[bool, int]:
    """What it returned, and the page faults of taking 48 MB a second time."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_memory_is_not_fetched_again() -> None:
    kept, faults = outcome()
    assert kept
    assert faults < 100


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", DEFAULT_VARIABLE])
def test_what_the_person_chose_stays(name: str) -> None:
    value = "glibc.malloc.check=0" if name == "GLIBC_TUNABLES" else "1"
    kept, faults = outcome(**{name: value})
    assert not kept
    assert faults > 1000


RETURNING = """
import ctypes, psutil
from packhorse.engines.common.allocator import keep_freed_memory, return_freed_memory
keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(ctypes.c_size_t(1 << 20)) for _ in range(200)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 20)
for block in blocks[:-1]:
    libc.free(block)
kept = psutil.Process().memory_info().rss
return_freed_memory()
print(kept - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator alone")
def test_what_was_freed_is_returned_when_it_is_told_to() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RETURNING], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 150 << 20
