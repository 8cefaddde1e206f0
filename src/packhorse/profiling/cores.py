"""Number of cores that an engine may use."""

from __future__ import annotations

import math
import os

from packhorse.cgroups import core_quota


def usable_cores() -> int:
    """Return the number of cores in the process's affinity, limited by the cgroup's CPU quota.

    More threads than the quota allows would all be throttled together once it is used up.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = core_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))
