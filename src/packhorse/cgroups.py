"""CPU and memory limits of Linux control groups, as containers and service managers set them.

Both versions are read, for every group from this process's own up to the root, since each of them
limits. Outside Linux, and without limits, nothing is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")
_RECLAIMABLE = ("inactive_file", "total_inactive_file")


def core_quota(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> float | None:
    """Return the cores that this process may keep busy on average, None if not limited."""
    quotas = []
    for version, folder in _groups("cpu", membership, root):
        if version == 2:
            words = (_read(folder / "cpu.max") or "").split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            words = [_read(folder / name) or "" for name in names]
        if len(words) == 2 and all(map(str.isdecimal, words)) and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_headrooms(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> list[int]:
    """Return the bytes left under every memory limit.

    Reclaimable file cache counts as free. A group is throttled above memory.high and killed above
    memory.max.
    """
    headrooms = []
    for version, folder in _groups("memory", membership, root):
        if version == 2:
            limits, used = ["memory.max", "memory.high"], "memory.current"
        else:
            limits, used = ["memory.limit_in_bytes"], "memory.usage_in_bytes"
        for limit in limits:
            headroom = _headroom(folder, limit, used)
            if headroom is not None:
                headrooms.append(headroom)
    return headrooms


def _groups(controller: str, membership: Path, root: Path) -> Iterator[tuple[int, Path]]:
    """Yield version and folder of each group that may limit `controller` for this process."""
    for line in (_read(membership) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, mounts = 2, (root, root / "unified")
        elif controller in controllers.split(","):
            version, mounts = 1, (root / controllers, root / controller)
        else:
            continue
        base = next((mount for mount in mounts[::-1] if mount.is_dir()), mounts[0])
        folder = base / path.lstrip("/")
        for place in (folder, *folder.parents):
            yield version, place
            if place == base:
                break


def _headroom(folder: Path, limit_name: str, used_name: str) -> int | None:
    limit, used = _read(folder / limit_name) or "", _read(folder / used_name) or ""
    statistics = _read(folder / "memory.stat")
    if not limit.isdecimal() or not used.isdecimal() or statistics is None:
        return None
    reclaimable = 0
    for line in statistics.splitlines():
        name, _, number = line.partition(" ")
        if name in _RECLAIMABLE and number.isdecimal():
            reclaimable += int(number)
    return max(0, int(limit) - int(used) + reclaimable)


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return None
