"""Block allocation: no block is lost or has two writers, and cached prefixes are found."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.engines.packed.blocks import BlockPool, Match
from packhorse.engines.packed.tiles import BLOCK

FIRST, SECOND = tuple(range(BLOCK)), tuple(range(100, 100 + BLOCK))


def filled(pool: BlockPool, tokens: tuple[int, ...]) -> list[int]:
    """Allocate and cache blocks that hold `tokens`."""
    blocks = [pool.allocate() for _ in range(len(tokens) // BLOCK)]
    pool.cache_prefix(tokens, blocks)
    return blocks


def test_freed_blocks_are_allocated_again() -> None:
    pool = BlockPool(3)
    blocks = [pool.allocate() for _ in range(3)]
    assert (sorted(blocks), pool.num_free_blocks) == ([0, 1, 2], 0)
    pool.free(blocks[1:])
    assert pool.num_free_blocks == 2
    assert {pool.allocate(), pool.allocate()} == set(blocks[1:])


@pytest.mark.parametrize(
    ("tokens", "whole", "copied"),
    [
        ((*FIRST, *SECOND, 1), 2, 0),
        ((*FIRST, *SECOND), 2, 0),
        ((*FIRST, *SECOND[:5], 7), 1, 5),
        ((*FIRST, *SECOND[:5]), 1, 5),
        ((*FIRST, 7), 1, 0),
        ((*FIRST[:3], 99), 0, 3),
        ((99, *FIRST), 0, 0),
        ((), 0, 0),
    ],
)
def test_the_longest_cached_prefix_is_matched(
    tokens: tuple[int, ...], whole: int, copied: int
) -> None:
    pool = BlockPool(9)
    filled(pool, (*FIRST, *(5 for _ in range(BLOCK))))
    filled(pool, (*FIRST, *SECOND))
    match = pool.match_prefix(tokens)
    assert (len(match.blocks), match.copied) == (whole, copied)
    assert match.tokens == whole * BLOCK + copied


def test_a_prefix_outlives_its_row_until_its_block_is_needed() -> None:
    pool = BlockPool(3)
    blocks = filled(pool, (*FIRST, *SECOND))
    pool.free(blocks)
    assert pool.num_free_blocks == 3
    assert pool.match_prefix((*FIRST, *SECOND)).blocks == tuple(blocks)
    taken = [pool.allocate(), pool.allocate()]
    assert blocks[0] not in taken, "the end of a row goes before its beginning"
    assert pool.match_prefix((*FIRST, *SECOND)) == Match((blocks[0],))
    pool.allocate()
    assert pool.match_prefix(FIRST) == Match(())


def test_a_shared_prefix_is_not_evicted() -> None:
    pool = BlockPool(2)
    blocks = filled(pool, FIRST)
    pool.free(blocks)
    pool.share(blocks)
    assert pool.num_free_blocks == 1
    assert pool.allocate() not in blocks
    pool.free(blocks)
    assert pool.num_free_blocks == 1


def test_evicted_blocks_are_not_matched() -> None:
    pool = BlockPool(2)
    pool.evict(filled(pool, FIRST))
    assert pool.match_prefix(FIRST) == Match(())


@given(st.integers(0, 10**6))
def test_every_block_is_free_evictable_or_referenced(seed: int) -> None:
    """Rows with a few prefixes come and go; in the end every block can be allocated once."""
    chance, pool = random.Random(seed), BlockPool(12)
    rows: list[list[int]] = []
    for _ in range(60):
        if rows and (chance.random() < 0.4 or pool.num_free_blocks < 3):
            pool.free(rows.pop(chance.randrange(len(rows))))
            continue
        tokens = tuple(chance.choice((1, 2)) for _ in range(2)) * BLOCK
        match = pool.match_prefix(tokens)
        pool.share(match.blocks)
        blocks = list(match.blocks)
        while len(blocks) * BLOCK < len(tokens):
            blocks.append(pool.allocate())
        pool.cache_prefix(tokens, blocks)
        rows.append(blocks)
        held = {block for row in rows for block in row}
        assert pool.num_free_blocks == 12 - len(held)
    for row in rows:
        pool.free(row)
    assert sorted(pool.allocate() for _ in range(12)) == list(range(12))
