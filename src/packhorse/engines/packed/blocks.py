"""Which blocks of the cache belong to whom, and which hold a prefix that rows have in common."""

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
    """Tokens of one block that follow those of `parent`; `block` holds their keys and values.

    order: the children's tokens, sorted, so that the one most like a given row is a neighbour.
    """

    tokens: Tokens = ()
    block: int = -1
    parent: _Prefix | None = None
    children: dict[Tokens, _Prefix] = field(default_factory=dict)
    sorted_children: list[Tokens] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Match:
    """What is known of a row's first tokens: whole blocks to share, and `copied` tokens that lie at
    the beginning of block `source`."""

    blocks: tuple[int, ...]
    source: int = -1
    copied: int = 0

    @property
    def tokens(self) -> int:
        return len(self.blocks) * BLOCK + self.copied


class BlockPool:
    """Blocks with a count of their holders.

    A prefix is kept after its last holder left, until its block is needed: the least recently used
    goes first, and of one row the end before the beginning.
    """

    def __init__(self, blocks: int) -> None:
        self._free_blocks = list(range(blocks - 1, -1, -1))
        self._ref_counts = [0] * blocks
        self._root = _Prefix()
        self._prefixes: dict[int, _Prefix] = {}
        self._evictable: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be taken."""
        return len(self._free_blocks) + len(self._evictable)

    def allocate(self) -> int:
        """A block for one holder; `available` must not be 0."""
        if not self._free_blocks:
            block, _ = self._evictable.popitem(last=False)
            self._evict(block)
            self._free_blocks.append(block)
        block = self._free_blocks.pop()
        self._ref_counts[block] = 1
        return block

    def share(self, blocks: Sequence[int]) -> None:
        """One more holder of each."""
        for block in blocks:
            self._ref_counts[block] += 1
            self._evictable.pop(block, None)

    def free(self, blocks: Sequence[int]) -> None:
        """One holder of each leaves."""
        for block in reversed(blocks):
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if block in self._prefixes:
                    self._evictable[block] = None
                else:
                    self._free_blocks.append(block)

    def match_prefix(self, tokens: Tokens) -> Match:
        """The longest beginning of `tokens` that is in the cache."""
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
        """`blocks` hold the keys and values of `tokens`, BLOCK in each; equal ones that are known
        already stay the ones that are shared."""
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
        """Nobody shall share these any more: what they hold is no number."""
        for block in blocks:
            if block in self._prefixes:
                self._evict(block)

    def unshared(self, blocks: Sequence[int]) -> list[int]:
        """Those that have one holder."""
        return [block for block in blocks if self._ref_counts[block] == 1]

    def _evict(self, block: int) -> None:
        node = self._prefixes.pop(block)
        parent = node.parent
        if parent is not None and parent.children.get(node.tokens) is node:
            del parent.children[node.tokens]
            del parent.sorted_children[bisect_left(parent.sorted_children, node.tokens)]
