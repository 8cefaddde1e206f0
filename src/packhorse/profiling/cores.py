"""Number of cores that an engine may use."""

from __future__ import annotations

import math
import os

from packhorse.cgroups import core_quota


def usable_cores() -> int:
    """Return the number of cores in the process's affinity, limited by the cgroup's CPU quota.

    More threads than the quota allows would all be throttled together once it is used up.
    """
    cores, quota = affinity_cores(), core_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def affinity_cores() -> int:
    """Return the number of cores in the process's affinity, or of the machine if unknown."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def limit_torch_threads() -> None:
    """Lower the number of torch's threads to the usable cores; torch itself ignores a quota."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
