"""Shared prefixes: how rows are grouped, and that groups really share their prefix."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.batching.prefixes import OWN_TOKENS, SHORTEST_PREFIX, shared_prefixes

SYSTEM = list(range(100, 120))
TASK = list(range(200, 300))


def rows(prefix: list[int], count: int, first: int = 1000) -> list[list[int]]:
    return [[*prefix, first + number, 7, 8] for number in range(count)]


@pytest.mark.parametrize(
    ("sequences", "cost", "lengths"),
    [
        ([], 10, []),
        ([[1, 2, 3]], 10, [0]),
        (rows(SYSTEM, 3), 10_000, [20] * 3),
        # a template shared by all costs nothing more: there is only one group
        (rows(SYSTEM[: SHORTEST_PREFIX - 1], 9), 0, [0] * 9),
        # an instruction of 100 tokens shared by half: worth a group of its own, or not
        (rows(SYSTEM + TASK, 5) + rows(SYSTEM, 5, 2000), 300, [120] * 5 + [20] * 5),
        (rows(SYSTEM + TASK, 5) + rows(SYSTEM, 5, 2000), 500, [20] * 10),
        # two instructions and nothing else in common
        (rows(TASK, 4) + rows(SYSTEM, 4), 50, [100] * 4 + [20] * 4),
        (rows(TASK, 4) + rows(SYSTEM, 4), 400, [0] * 8),
        # equal rows keep tokens of their own
        ([TASK, TASK, TASK], 10, [100 - OWN_TOKENS] * 3),
    ],
)
def test_groups(sequences: list[list[int]], cost: float, lengths: list[int]) -> None:
    assert shared_prefixes(sequences, cost) == lengths


FEW_TOKENS = st.lists(st.integers(0, 2), max_size=14)
SEQUENCES = st.lists(
    st.builds(
        lambda head, tail: head * 8 + tail, st.lists(st.integers(0, 1), max_size=3), FEW_TOKENS
    ),
    max_size=30,
)


def groups(sequences: list[list[int]], lengths: list[int]) -> dict[tuple[int, ...], int]:
    found: dict[tuple[int, ...], int] = {}
    for ids, length in zip(sequences, lengths, strict=True):
        prefix = tuple(ids[:length])
        found[prefix] = found.get(prefix, 0) + 1
    return found


@given(SEQUENCES, st.floats(0, 200))
def test_laws(sequences: list[list[int]], cost: float) -> None:
    lengths = shared_prefixes(sequences, cost)
    assert len(lengths) == len(sequences)
    for ids, length in zip(sequences, lengths, strict=True):
        assert length == 0 or SHORTEST_PREFIX <= length <= len(ids) - OWN_TOKENS
    found = groups(sequences, lengths)
    saved = sum((count - 1) * len(prefix) for prefix, count in found.items())
    assert saved - cost * max(0, len(found) - 1) >= -1e-9


@given(SEQUENCES, st.floats(0, 200), st.randoms(use_true_random=False))
def test_order_does_not_matter(
    sequences: list[list[int]], cost: float, chance: random.Random
) -> None:
    order = list(range(len(sequences)))
    chance.shuffle(order)
    shuffled = shared_prefixes([sequences[place] for place in order], cost)
    lengths = shared_prefixes(sequences, cost)
    assert shuffled == [lengths[place] for place in order]


def test_thousands_of_long_rows() -> None:
    """Quadratic work would take hours here."""
    head = list(range(1800))
    sequences = [[*head, *random.Random(n).choices(range(50_000), k=200)] for n in range(4096)]
    assert shared_prefixes(sequences, 2000) == [1800] * 4096


def test_nested_groups_do_not_recurse_too_deep() -> None:
    sequences = [[5] * length + [6] * 3 for length in range(8, 3000)]
    assert len(shared_prefixes(sequences, 1.0)) == len(sequences)
