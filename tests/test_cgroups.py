"""Limits of containers, from folders as the kernel shows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from packhorse.cgroups import core_quota, memory_headrooms
from packhorse.profiling import cores


def write_cgroup(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_cgroup_v2_counts_every_limit_on_the_way_and_file_cache_as_free(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/pod/job\n")
    root = tmp_path / "fs"
    stat = "anon 5\ninactive_file 100\n"
    write_cgroup(root / "pod", {"memory.max": "2000", "memory.current": "700", "memory.stat": stat})
    write_cgroup(
        root / "pod/job", {"memory.max": "max", "memory.current": "600", "memory.stat": stat}
    )
    assert memory_headrooms(membership, root) == [2000 - 700 + 100]


def test_cgroup_v1(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("5:cpu,cpuacct:/x\n4:memory:/box\n")
    root = tmp_path / "fs"
    write_cgroup(
        root / "memory/box",
        {
            "memory.limit_in_bytes": "900",
            "memory.usage_in_bytes": "1000",
            "memory.stat": "total_inactive_file 50\n",
        },
    )
    assert memory_headrooms(membership, root) == [0]


def test_memory_above_which_a_group_is_slowed_down_is_a_limit(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/\n")
    files = {"memory.max": "2000", "memory.high": "1500", "memory.current": "700"}
    write_cgroup(tmp_path, {**files, "memory.stat": "anon 5\n"})
    assert sorted(memory_headrooms(membership, tmp_path)) == [800, 1300]


def test_no_cgroup(tmp_path: Path) -> None:
    assert memory_headrooms(tmp_path / "none", tmp_path) == []
    assert core_quota(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": ""}, None),
        ("0::/a/b", {"cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "400000 100000"}, 1.5),
        ("0::/docker/gone", {"cpu.max": "300000 100000"}, 3.0),
        ("0::/../sibling", {"cpu.max": "300000 100000"}, 3.0),
        ("0::/a", {"unified/a/cpu.max": "20000 10000"}, 2.0),
        (
            "4:cpu,cpuacct:/a\n1:memory:/b",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "250000",
             "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        (
            "4:cpu,cpuacct:/a",
            {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000",
             "cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"},
            1.0,
        ),
    ],
)  # fmt: skip
def test_core_quota(
    tmp_path: Path, membership: str, files: dict[str, str], quota: float | None
) -> None:
    place = tmp_path / "cgroup"
    place.write_text(f"{membership}\n")
    for name, text in files.items():
        write_cgroup((tmp_path / "fs" / name).parent, {Path(name).name: f"{text}\n"})
    assert core_quota(place, tmp_path / "fs") == quota


@pytest.mark.parametrize(
    ("quota", "expected"), [(0.2, 1), (1.0, 1), (1.2, 2), (64.0, 3), (None, 3)]
)
def test_usable_cores_are_the_quota_rounded_up(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    monkeypatch.setattr(cores, "core_quota", lambda: quota)
    assert cores.usable_cores() == expected


def test_threads_of_torch_are_bounded_by_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        monkeypatch.setattr(cores, "usable_cores", lambda: 2)
        cores.limit_torch_threads()
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(cores, "usable_cores", lambda: 8)
        cores.limit_torch_threads()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(usual)
