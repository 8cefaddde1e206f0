"""Policies as truth tables, and the invariants of all of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.batching.cost import CostModel, Costs, WorkCounts
from packhorse.batching.policies import POLICIES, get_policy
from packhorse.batching.sizes import Limits, RowSize, batch_tokens, longest_first
from packhorse.errors import ConfigError

COSTS = Costs(CostModel("min-prefix-prefill", 2, WorkCounts(0.01, 1e-3, 1e-7, 0.01, 1e-3, 1e-6)))
TABLE = [
    # policy, prompt lengths (4 new tokens each), rows a batch, tokens a batch, batches
    ("single", [5, 9, 2], 2, 100, [[0], [1], [2]]),
    ("fixed", [5, 9, 2], 2, 100, [[0, 1], [2]]),
    ("fixed", [5, 9, 2, 1], 2, 1, [[0, 1], [2, 3]]),
    ("dynamic", [5, 9, 2, 2], 9, 26, [[0, 1], [2, 3]]),
    ("dynamic", [5, 9, 2, 2], 9, 25, [[0], [1], [2, 3]]),
    ("dynamic", [1, 50, 1, 1], 9, 20, [[0], [1], [2, 3]]),
    ("sorted", [5, 9, 2, 9], 2, 1, [[1, 3], [0, 2]]),
    ("sorted", [3, 3, 3, 3, 3], 2, 1, [[0, 1], [2, 3], [4]]),
    ("sorted-dynamic", [5, 9, 2, 9], 9, 26, [[1, 3], [0, 2]]),
    ("sorted-dynamic", [5, 9, 2, 9], 9, 17, [[1], [3], [0], [2]]),
    ("sorted-dynamic", [2, 99, 2], 9, 12, [[1], [0, 2]]),
    ("continuous", [5, 9, 2, 9], 3, 1, [[1, 3, 0], [2]]),
]


@pytest.mark.parametrize(("policy", "lengths", "batch_size", "tokens", "batches"), TABLE)
def test_batches(
    policy: str, lengths: list[int], batch_size: int, tokens: int, batches: list[list[int]]
) -> None:
    sizes = [RowSize(length, 4) for length in lengths]
    assert POLICIES[policy](sizes, Limits(batch_size, tokens)) == batches


def test_new_tokens_count_as_much_as_prompt_tokens() -> None:
    sizes = [RowSize(10, 2), RowSize(10, 90), RowSize(10, 2)]
    assert POLICIES["dynamic"](sizes, Limits(8, 100)) == [[0], [1], [2]]


def test_longest_first_is_stable() -> None:
    sizes = [RowSize(3, 1), RowSize(7, 1), RowSize(3, 2), RowSize(7, 1), RowSize(3, 1)]
    assert longest_first(sizes) == [1, 3, 2, 0, 4]


def test_no_rows() -> None:
    for policy in POLICIES.values():
        assert policy([], Limits(4, 100, COSTS)) == []
    assert batch_tokens([]) == 0


def test_an_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        get_policy("sortd")
    assert "sorted-dynamic" in caught.value.hint


ROWS = st.lists(st.builds(RowSize, st.integers(1, 300), st.integers(1, 100)), max_size=60)
LIMITS = st.builds(Limits, st.integers(1, 20), st.integers(1, 3000), st.just(COSTS))


@pytest.mark.parametrize("policy", POLICIES)
@given(sizes=ROWS, limits=LIMITS)
def test_laws(policy: str, sizes: list[RowSize], limits: Limits) -> None:
    batches = POLICIES[policy](sizes, limits)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
    assert all(batches)
    if policy in ("fixed", "sorted"):
        assert all(len(batch) <= limits.batch_size for batch in batches)
    if policy in ("dynamic", "sorted-dynamic", "planned"):
        for batch in batches:
            tokens = batch_tokens(sizes[index] for index in batch)
            assert len(batch) == 1 or tokens <= limits.max_batch_tokens
    if policy.startswith("sorted"):
        prompts = [sizes[index].prompt for batch in batches for index in batch]
        assert prompts == sorted(prompts, reverse=True)
    assert POLICIES[policy](sizes, limits) == batches


@given(sizes=ROWS, tokens=st.integers(1, 3000))
def test_no_batch_is_closed_early(sizes: list[RowSize], tokens: int) -> None:
    """A batch ends only if the next row would exceed the token budget."""
    for policy in ("dynamic", "sorted-dynamic"):
        batches = POLICIES[policy](sizes, Limits(1, tokens))
        for batch, following in pairwise(batches):
            assert batch_tokens(sizes[index] for index in [*batch, following[0]]) > tokens
