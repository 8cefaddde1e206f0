from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.batching.memory import _cgroup_headrooms, available_bytes, token_budget
from packhorse.contract import EngineTraits

TRAITS = EngineTraits(
    name="toy",
    cost_rule="padded",
    device="cpu",
    compute_type="float32",
    workers=2,
    threads=1,
    max_context=2048,
    model_bytes=10**9,
    cache_bytes_per_token=1000,
    step_bytes_per_row=65_000,
    cache_copies=2,
    preferred_batch_tokens=4096,
)

BUDGETS = [
    # free bytes, asked, tokens, decided by; a token takes 2 x 1000 + 65000 / 65 = 3000 bytes
    (10**12, None, 4096, "engine"),
    (12_000_000, None, 1000, "memory"),
    (1000, None, 256, "memory"),
    (1000, 9999, 9999, "asked"),
]


@pytest.mark.parametrize(("free", "asked", "tokens", "decided_by"), BUDGETS)
def test_budget(free: int, asked: int | None, tokens: int, decided_by: str) -> None:
    budget = token_budget(TRAITS, free, max_new_tokens=64, asked=asked)
    assert (budget.tokens, budget.decided_by) == (tokens, decided_by)
    assert budget.bytes_per_token == 3000


def test_available_memory_is_this_machine_s() -> None:
    import psutil

    assert 0 < available_bytes() <= psutil.virtual_memory().total


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
    assert _cgroup_headrooms(membership, root) == [2000 - 700 + 100]


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
    assert _cgroup_headrooms(membership, root) == [0]


def test_no_cgroup(tmp_path: Path) -> None:
    assert _cgroup_headrooms(tmp_path / "none", tmp_path) == []
