"""Leading tokens that rows have in common, so that an engine can compute them once.

Rows are divided into groups that each share one prefix; rows of different groups cannot share a
batch. The groups maximize

    saved = sum over groups of (rows - 1) x prefix tokens - (groups - 1) x group_cost

where rows without a prefix count as one more group. Sorting the token lists brings common prefixes
together: the common lengths of neighbours form a tree of groups (LCP intervals: Abouelhoda, Kurtz
and Ohlebusch 2004, J. Discrete Algorithms 2). From the leaves to the root, each group decides which
of its parts should be groups of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

SHORTEST_PREFIX = 8
"""Minimum number of tokens for which sharing pays off."""
OWN_TOKENS = 2
"""Tokens that each row keeps for itself, because an engine needs some to continue from."""


def shared_prefixes(sequences: Sequence[Sequence[int]], group_cost: float) -> list[int]:
    """Return the length of the prefix that each row shares with its group (tokens); 0 for none.

    Rows with equal prefixes form a group; a row that others left may be alone in its group. The
    time is O(n log n) in the number of rows.

    Args:
        sequences: Token ids of each row.
        group_cost: Prompt tokens that cost as much as one more batch.
    """
    shortened = [tuple(ids[: max(0, len(ids) - OWN_TOKENS)]) for ids in sequences]
    order = sorted(range(len(shortened)), key=shortened.__getitem__)
    common = [
        common_length(shortened[before], shortened[after]) for before, after in pairwise(order)
    ]
    lengths = [0] * len(sequences)
    if not order:
        return lengths
    pending = [_tree(common, group_cost)]
    while pending:
        group = pending.pop()
        for place in range(group.start, group.stop):
            lengths[order[place]] = group.depth
        pending += group.apart
    return lengths


@dataclass(slots=True)
class _Group:
    """Sorted rows [start, stop) with `depth` leading tokens in common.

    Attributes:
        depth: Number of common tokens.
        start: First row.
        stop: Row after the last one.
        parts: Groups with longer prefixes inside this one.
        apart: Parts that become groups of their own.
        saved: Tokens saved, see the module.
    """

    depth: int
    start: int
    stop: int = 0
    parts: list[_Group] = field(default_factory=list)
    apart: list[_Group] = field(default_factory=list)
    saved: float = 0.0

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def decide(self, stop: int, group_cost: float) -> None:
        """Close the group and choose which parts leave it."""
        self.stop = stop
        leaving = [part for part in self.parts if part.saved - group_cost > part.rows * self.depth]
        self.apart, self.saved = leaving, self._saved(leaving, group_cost)
        if sum(part.rows for part in self.parts) == self.rows:
            saved = self._saved(self.parts, group_cost)
            if saved > self.saved:
                self.apart, self.saved = self.parts, saved

    def _saved(self, leaving: Sequence[_Group], group_cost: float) -> float:
        staying = self.rows - sum(part.rows for part in leaving)
        own = (staying - 1) * self.depth if staying else group_cost
        return own + sum(part.saved - group_cost for part in leaving)


def _tree(common: Sequence[int], group_cost: float) -> _Group:
    """Return the root of the group tree.

    Args:
        common: Number of tokens that sorted neighbours have in common.
        group_cost: See `shared_prefixes`.
    """
    rows = len(common) + 1
    open_groups = [_Group(0, 0)]
    for place in range(1, rows + 1):
        length = common[place - 1] if place < rows else 0
        length = length if length >= SHORTEST_PREFIX else 0
        start, ended = place - 1, None
        while length < open_groups[-1].depth:
            group = open_groups.pop()
            group.decide(place, group_cost)
            start = group.start
            ended = group
            if length <= open_groups[-1].depth:
                open_groups[-1].parts.append(group)
                ended = None
        if length > open_groups[-1].depth:
            open_groups.append(_Group(length, start, parts=[ended] if ended else []))
    (root,) = open_groups
    root.decide(rows, group_cost)
    return root


def common_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return the number of leading tokens that both have in common.

    Uses bisection, so that few tuple comparisons cover most tokens.
    """
    known, most = 0, min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    while known < most:
        middle = (known + most + 1) // 2
        if one[known:middle] == other[known:middle]:
            known = middle
        else:
            most = middle - 1
    return known
