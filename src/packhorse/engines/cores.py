"""How many cores an engine may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores this process may run on: those of its affinity where the system knows one."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
