"""Attention over the paged cache, compared with the formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from packhorse.engines.packed.attention import attend
from packhorse.engines.packed.tiles import BLOCK, TILE_ROWS

SPANS = [(1, 0), (1, 37), (20, 0), (37, 13), (1, 100)]
"""Number of tokens of a span and position of its first token."""


class Case:
    """Spans with random queries over a cache with blocks in random order."""

    def __init__(
        self, spans: list[tuple[int, int]], kv: int, group: int, width: int, kind: type,
        window: int, cap: float = 0.0,
    ) -> None:  # fmt: skip
        chance = np.random.default_rng(len(spans) + width)
        tokens = sum(count for count, _ in spans)
        self.per_row = max(first + count for count, first in spans) // BLOCK + 1
        blocks = len(spans) * self.per_row
        planes = (2, blocks, kv)
        self.scales: tuple[NDArray[np.float32], NDArray[np.float32]]
        if kind is np.int8:
            self.keys = chance.integers(-127, 128, (*planes, width, BLOCK)).astype(np.int8)
            self.values = chance.integers(-127, 128, (*planes, BLOCK, width)).astype(np.int8)
            scaled = (chance.random((2, *planes, BLOCK)) * 0.02).astype(np.float32)
            self.scales = (scaled[0], scaled[1])
        else:
            self.keys = chance.standard_normal((*planes, width, BLOCK)).astype(np.float32)
            self.values = chance.standard_normal((*planes, BLOCK, width)).astype(np.float32)
            self.scales = (np.empty((0, 0, 0, 0), np.float32),) * 2
        self.queries = chance.standard_normal((kv, tokens, group, width)).astype(np.float32) / 8
        self.tables = chance.permutation(blocks).reshape(len(spans), -1).astype(np.int32)
        self.window, self.group, self.cap = window, group, cap
        starts = np.cumsum([0, *(count for count, _ in spans)])
        self.spans = [
            (int(start), count, first, number, int(start))
            for number, ((count, first), start) in enumerate(zip(spans, starts, strict=False))
        ]

    def run(self, spans: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
        kv, tokens, group, width = self.queries.shape
        output = np.zeros((tokens, kv * group * width), np.float32)
        scores = np.empty((TILE_ROWS, self.per_row * BLOCK), np.float32)
        sums = np.empty((TILE_ROWS, width), np.float32)
        attend(
            np.array(spans, np.int32), 0, len(spans) * kv, group, self.tables, 1, self.window,
            np.float32(self.cap), self.queries, self.keys, self.values, *self.scales,
            scores, sums, np.empty(TILE_ROWS, np.float32), output,
        )  # fmt: skip
        return output

    def expected(self) -> NDArray[np.float64]:
        kv, tokens, group, width = self.queries.shape
        found = np.zeros((tokens, kv, group, width))
        for start, count, first, number, _ in self.spans:
            keys, values = self._row(self.keys, 0, number), self._row(self.values, 1, number)
            for step in range(count):
                seen = slice(max(0, first + step + 1 - (self.window or 10**6)), first + step + 1)
                for head in range(kv):
                    scores = self.queries[head, start + step] @ keys[head, seen].T
                    if self.cap:
                        scores = self.cap * np.tanh(scores / self.cap)
                    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                    weights /= weights.sum(axis=1, keepdims=True)
                    found[start + step, head] = weights @ values[head, seen]
        return found.reshape(tokens, -1)

    def _row(self, cache: NDArray[Any], which: int, number: int) -> NDArray[np.float64]:
        """Return the keys or values [kv heads, positions, width] of a row."""
        held: NDArray[np.float64] = cache[1, self.tables[number]].astype(np.float64)
        if which == 0:
            held = held.swapaxes(2, 3)
        if self.scales[0].size:
            held *= self.scales[which][1, self.tables[number]][..., None]
        _, kv, _, width = held.shape
        return held.swapaxes(0, 1).reshape(kv, -1, width)


@pytest.mark.parametrize("kind", [np.float32, np.int8])
@pytest.mark.parametrize("window", [0, 1, 7, 40])
@pytest.mark.parametrize(
    ("kv", "group", "width"), [(3, 3, 64), (1, 7, 64), (2, 1, 32), (2, 5, 96), (1, 16, 128)]
)
def test_attention_matches_the_formula(
    kind: type, window: int, kv: int, group: int, width: int
) -> None:
    case = Case(SPANS, kv, group, width, kind, window)
    expected = case.expected()
    assert case.run(case.spans) == pytest.approx(expected, abs=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kind", [np.float32, np.int8])
@pytest.mark.parametrize("window", [0, 7])
def test_bounded_scores_match_the_formula(kind: type, window: int) -> None:
    case = Case(SPANS, 2, 3, 64, kind, window, cap=0.7)
    expected = case.expected()
    assert case.run(case.spans) == pytest.approx(expected, abs=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kind", [np.float32, np.int8])
def test_a_token_gives_the_same_bits_in_any_span(kind: type) -> None:
    case = Case([(60, 0)], 2, 3, 64, kind, 0)
    cut = [(0, 7, 0, 0, 0), (7, 1, 7, 0, 7), (8, 30, 8, 0, 8), (38, 22, 38, 0, 38)]
    assert (case.run(case.spans) == case.run(cut)).all()


def test_what_other_rows_left_in_a_block_does_not_count() -> None:
    case = Case([(5, 0)], 2, 3, 64, np.int8, 0)
    before = case.run(case.spans)
    block = case.tables[0, 0]
    case.keys[1, block, ..., 5:], case.values[1, block, :, 5:] = 127, 127
    for scales in case.scales:
        scales[1, block, :, 5:] = np.nan
    assert (case.run(case.spans) == before).all()
