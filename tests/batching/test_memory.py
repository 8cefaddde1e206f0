from __future__ import annotations

import subprocess
import sys

import pytest

from packhorse.batching.memory import available_bytes, token_budget
from packhorse.engine_protocol import EngineCapabilities

TRAITS = EngineCapabilities(
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


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (3_000_000_000, resource.RLIM_INFINITY))
from packhorse.batching.memory import available_bytes
print(available_bytes())
"""


def test_the_address_space_is_a_limit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True
    )
    assert 0 < int(done.stdout) < 3_000_000_000
