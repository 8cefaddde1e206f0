"""Attention of packed rows over the paged cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from packhorse.engines.packed.compiling import inlined, kernel
from packhorse.engines.packed.tiles import BLOCK, TILE_ROWS, score_rows, weigh_rows
from packhorse.engines.packed.vectors import (
    exp,
    larger,
    largest,
    load,
    prefetch,
    splat,
    store,
    total,
    where_above,
)

_LINE_BYTES = 64
_NEVER = np.float32(-np.inf)


@kernel
def attend(
    spans: Any, count: int, group: int, tables: Any, layer: int, window: int, queries: Any,
    keys: Any, values: Any, key_scales: Any, value_scales: Any,
    scores: Any, sums: Any, shares: Any, output: Any,
) -> None:  # fmt: skip
    """Attention of `count` spans of consecutive tokens, each of one row of text.

    spans: [n, 5] first packed token, tokens, position of the first, table, first row of `output`.
    tables: [tables, blocks] blocks of a row's cache in order. window: positions that are seen, the
    own one included, 0 for all. queries: [kv heads, tokens, group, width], scaled by
    1/sqrt(head size). keys: [layers, blocks, kv heads, width, BLOCK], values: [layers, blocks,
    kv heads, BLOCK, width], their scales [layers, blocks, kv heads, BLOCK], empty for float32.
    scores: [TILE_ROWS, positions], sums: [TILE_ROWS, width], shares: [TILE_ROWS]: scratch.
    output: [rows, kv heads x group x width].

    A tile is TILE_ROWS pairs of token and query head that share a key/value head. All scores of a
    tile are computed before their softmax, so a row's sums have the same order in any tile.
    """
    kv_heads, width = queries.shape[0], queries.shape[3]
    for number in range(count):
        first, tokens, position = spans[number, 0], spans[number, 1], spans[number, 2]
        table, row_out = tables[spans[number, 3]], spans[number, 4]
        for head in range(kv_heads):
            plane = (np.int64(layer) * keys.shape[1] * kv_heads + head) * BLOCK
            query = (head * queries.shape[1] + first) * group * width
            for pair in range(0, tokens * group, TILE_ROWS):
                rows = min(TILE_ROWS, tokens * group - pair)
                latest = position + (pair + rows - 1) // group
                begin = _first_seen(position + pair // group, window) // BLOCK
                end = latest // BLOCK + 1
                for block in range(begin, end):
                    place = plane + np.int64(table[block]) * kv_heads * BLOCK
                    if pair == 0:
                        _fetch(values, value_scales, place, width)
                    score_rows(
                        rows, scores, (block - begin) * BLOCK, scores.shape[1],
                        queries, query + pair * width, width,
                        keys, place * width, width, key_scales, place,
                    )  # fmt: skip
                for row in range(rows):
                    own = position + (pair + row) // group
                    sums[row] = 0.0
                    shares[row] = _softmax(
                        scores, row, _first_seen(own, window), own, begin, end,
                        value_scales, table, plane, kv_heads,
                    )  # fmt: skip
                for block in range(begin, end):
                    place = plane + np.int64(table[block]) * kv_heads * BLOCK
                    if pair == 0 and head + 1 < kv_heads:
                        _fetch(keys, key_scales, place + BLOCK, width)
                    weigh_rows(
                        rows, width, sums, 0, width, scores, (block - begin) * BLOCK,
                        scores.shape[1], values, place * width, width,
                    )  # fmt: skip
                _write(rows, pair, group, head, width, row_out, sums, shares, output)


@inlined
def _write(
    rows: int, pair: int, group: int, head: int, width: int, row_out: int,
    sums: Any, shares: Any, output: Any,
) -> None:  # fmt: skip
    """A tile's sums x shares to their places in `output`."""
    for row in range(rows):
        token, member = divmod(pair + row, group)
        to = (row_out + token) * output.shape[1] + (head * group + member) * width
        share = splat(shares[row])
        for column in range(0, width, BLOCK):
            store(output, to + column, load(sums, row * width + column) * share)


@inlined
def _fetch(blocks: Any, scales: Any, place: int, width: int) -> None:
    """Asks for a block that is read next, and its scales."""
    line = _LINE_BYTES // blocks.itemsize
    for offset in range(0, width * BLOCK, line):
        prefetch(blocks, place * width + offset)
    if scales.size:
        prefetch(scales, place)


@inlined
def _first_seen(position: int, window: int) -> int:
    return max(0, position - window + 1) if window else 0


@inlined
def _softmax(
    scores: Any, row: int, lowest: int, highest: int, begin: int, end: int,
    value_scales: Any, table: Any, plane: int, kv_heads: int,
) -> Any:  # fmt: skip
    """Scores of a row become e^(score - largest), times the values' scales where there are some;
    returns 1 / the sum of the exponentials. Only positions from `lowest` to `highest` count."""
    start, length = row * scores.shape[1], (end - begin) * BLOCK
    for place in range(lowest - begin * BLOCK):
        scores[row, place] = _NEVER
    for place in range(highest + 1 - begin * BLOCK, length):
        scores[row, place] = _NEVER
    peak = splat(_NEVER)
    for place in range(start, start + length, BLOCK):
        peak = larger(peak, load(scores, place))
    peak = splat(largest(peak))
    none = splat(np.float32(0.0))
    summed = none
    for block in range(begin, end):
        place = start + (block - begin) * BLOCK
        power = exp(load(scores, place) - peak)
        summed = summed + power
        if value_scales.size:
            scale = load(value_scales, plane + np.int64(table[block]) * kv_heads * BLOCK)
            power = where_above(power, none, power * scale)
        store(scores, place, power)
    return np.float32(1.0) / total(summed)
