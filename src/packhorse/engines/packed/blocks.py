"""Allocation of cache blocks, and the prefix cache that lets rows share them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from packhorse.batching.prefixes import common_length
from packhorse.engines.packed.tiles import BLOCK

Tokens = tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Prefix:
    """Node of the prefix tree: the tokens of one block that follow those of `parent`.

    Attributes:
        tokens: Token ids of the block.
        block: Block that holds their keys and values.
        parent: Preceding block; None for the root.
        children: Following blocks by their tokens.
        sorted_children: Tokens of the children in order, so that the longest match is a neighbour.
    """

    tokens: Tokens = ()
    block: int = -1
    parent: _Prefix | None = None
    children: dict[Tokens, _Prefix] = field(default_factory=dict)
    sorted_children: list[Tokens] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Match:
    """Cached part of a prompt.

    Attributes:
        blocks: Whole blocks to share.
        source: Block whose first tokens can be copied; -1 for none.
        copied: Number of tokens to copy from `source`.
    """

    blocks: tuple[int, ...]
    source: int = -1
    copied: int = 0

    @property
    def tokens(self) -> int:
        return len(self.blocks) * BLOCK + self.copied


class BlockPool:
    """Cache blocks with reference counts.

    A cached prefix outlives its last reference until its block is needed. Blocks are evicted in
    least-recently-used order; within one row the last block goes first.
    """

    def __init__(self, blocks: int) -> None:
        self._free_blocks = list(range(blocks - 1, -1, -1))
        self._ref_counts = [0] * blocks
        self._root = _Prefix()
        self._prefixes: dict[int, _Prefix] = {}
        self._evictable: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free_blocks(self) -> int:
        """Number of blocks that can be allocated, evictable ones included."""
        return len(self._free_blocks) + len(self._evictable)

    def allocate(self) -> int:
        """Allocate a block with one reference; `num_free_blocks` must not be 0."""
        if not self._free_blocks:
            block, _ = self._evictable.popitem(last=False)
            self._evict(block)
            self._free_blocks.append(block)
        block = self._free_blocks.pop()
        self._ref_counts[block] = 1
        return block

    def share(self, blocks: Sequence[int]) -> None:
        """Add a reference to each block."""
        for block in blocks:
            self._ref_counts[block] += 1
            self._evictable.pop(block, None)

    def free(self, blocks: Sequence[int]) -> None:
        """Remove a reference from each block."""
        for block in reversed(blocks):
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if block in self._prefixes:
                    self._evictable[block] = None
                else:
                    self._free_blocks.append(block)

    def match_prefix(self, tokens: Tokens) -> Match:
        """Return the longest cached prefix of `tokens`."""
        node, blocks, start = self._root, [], 0
        while child := node.children.get(tokens[start : start + BLOCK]):
            node, start = child, start + BLOCK
            blocks.append(child.block)
        rest = tokens[start : start + BLOCK]
        place = bisect_left(node.sorted_children, rest)
        found = Match(tuple(blocks))
        for near in node.sorted_children[max(0, place - 1) : place + 1]:
            common = common_length(near, rest)
            if common > found.copied:
                found = Match(tuple(blocks), node.children[near].block, common)
        return found

    def cache_prefix(self, tokens: Tokens, blocks: Sequence[int]) -> None:
        """Add `blocks`, which hold the keys and values of `tokens`, to the prefix cache.

        Each block holds BLOCK tokens. Blocks that are already cached for the same tokens stay the
        shared ones.
        """
        node = self._root
        for number, block in enumerate(blocks):
            part = tokens[number * BLOCK : (number + 1) * BLOCK]
            child = node.children.get(part)
            if child is None:
                child = node.children[part] = _Prefix(part, block, node)
                insort(node.sorted_children, part)
                self._prefixes[block] = child
            node = child

    def evict(self, blocks: Sequence[int]) -> None:
        """Remove blocks from the prefix cache because they hold values that are not finite."""
        for block in blocks:
            if block in self._prefixes:
                self._evict(block)

    def unshared(self, blocks: Sequence[int]) -> list[int]:
        """Return the blocks that have exactly one reference."""
        return [block for block in blocks if self._ref_counts[block] == 1]

    def _evict(self, block: int) -> None:
        node = self._prefixes.pop(block)
        parent = node.parent
        if parent is not None and parent.children.get(node.tokens) is node:
            del parent.children[node.tokens]
            del parent.sorted_children[bisect_left(parent.sorted_children, node.tokens)]
