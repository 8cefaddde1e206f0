"""glibc allocator settings for engines, which allocate and free large blocks at every step.

Engines allocate megabytes for each layer and step and free them. By default glibc returns such
blocks to the system at once and requests them anew, and the system clears every page each time: a
third of the time for batches of 200-token prompts on CTranslate2. If glibc keeps freed blocks, the
peak is no higher; the process only does not shrink between batches.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

DEFAULT_VARIABLE = "PACKHORSE_DEFAULT_MALLOC"
_CHOSEN_BY_USER = ("GLIBC_TUNABLES", "LD_PRELOAD", DEFAULT_VARIABLE)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MOST_BYTES = 2**31 - 1
_OLDER_GLIBC_MOST_BYTES = 32 << 20


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks for the next step, in one arena; return whether it does now.

    The setting applies to the whole process. Nothing changes outside Linux with glibc, or if the
    user set any MALLOC_… variable, GLIBC_TUNABLES, LD_PRELOAD or PACKHORSE_DEFAULT_MALLOC.
    """
    if not sys.platform.startswith("linux"):
        return False
    if any(name.startswith("MALLOC_") or name in _CHOSEN_BY_USER for name in os.environ):
        return False
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - AttributeError where it is another C library
        kept = any(
            libc.mallopt(_M_MMAP_THRESHOLD, size) for size in (_MOST_BYTES, _OLDER_GLIBC_MOST_BYTES)
        )
        return bool(
            kept & libc.mallopt(_M_TRIM_THRESHOLD, _MOST_BYTES) & libc.mallopt(_M_ARENA_MAX, 1)
        )
    return False


def return_freed_memory() -> None:
    """Return freed memory to the system once, after loading, whose peak exceeds the loaded size.
    Does nothing outside Linux with glibc."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
