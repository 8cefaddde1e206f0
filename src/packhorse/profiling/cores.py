"""How many cores an engine may use."""

from __future__ import annotations

import math
import os

from packhorse.cgroups import core_quota


def usable_cores() -> int:
    """Cores of this process's affinity, and no more than its cgroup's quota keeps busy: threads
    beyond that are all stopped together as soon as the quota of a period is used up."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = core_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def limit_torch_threads() -> None:
    """Lower the number of torch's threads to the usable cores; torch itself ignores a quota."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
