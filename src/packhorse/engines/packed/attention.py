"""Attention kernel for packed rows over the paged key/value cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from packhorse.engines.packed.compiling import inlined, kernel
from packhorse.engines.packed.tiles import BLOCK, TILE_ROWS, add_weighted_values, score_rows
from packhorse.engines.packed.vectors import (
    exp,
    load,
    maximum,
    prefetch,
    reduce_max,
    reduce_sum,
    splat,
    store,
    where_above,
)

_LINE_BYTES = 64
_MASKED = np.float32(-np.inf)


@kernel
def attend(
    spans: Any, begin_unit: int, end_unit: int, group: int, block_tables: Any, layer: int,
    window: int, cap: Any, queries: Any,
    keys: Any, values: Any, key_scales: Any, value_scales: Any,
    scores: Any, value_sums: Any, inverse_sums: Any, output: Any,
) -> None:  # fmt: skip
    """Compute attention for spans of consecutive tokens, each from one row.

    Unit i is key/value head i % heads of span i // heads.

    A tile is TILE_ROWS pairs of token and query head that share a key/value head. All scores of a
    tile are computed before their softmax, so the sums of a row have the same order in any tile.

    Args:
        spans: [n, 5] first packed token, number of tokens, position of the first, row of
            `block_tables`, first row of `output`.
        begin_unit: First unit to compute.
        end_unit: End of the units to compute.
        group: Query heads per key/value head.
        block_tables: [rows, blocks] cache blocks of each row, in order.
        layer: Index of the layer.
        window: Number of positions that a token attends to, itself included; 0 for all.
        cap: Scores are bounded by cap x tanh(score / cap); 0 for no bound.
        queries: [kv heads, tokens, group, width], scaled by 1/sqrt(head size).
        keys: [layers, blocks, kv heads, width, BLOCK].
        values: [layers, blocks, kv heads, BLOCK, width].
        key_scales: [layers, blocks, kv heads, BLOCK]; empty for float32.
        value_scales: Like `key_scales`.
        scores: [TILE_ROWS, positions] scratch.
        value_sums: [TILE_ROWS, width] scratch.
        inverse_sums: [TILE_ROWS] scratch.
        output: [rows, kv heads x group x width].
    """
    kv_heads, width = queries.shape[0], queries.shape[3]
    for unit in range(begin_unit, end_unit):
        number, head = divmod(unit, kv_heads)
        first, tokens, position = spans[number, 0], spans[number, 1], spans[number, 2]
        block_table, row_out = block_tables[spans[number, 3]], spans[number, 4]
        plane = (np.int64(layer) * keys.shape[1] * kv_heads + head) * BLOCK
        query = (head * queries.shape[1] + first) * group * width
        for pair in range(0, tokens * group, TILE_ROWS):
            rows = min(TILE_ROWS, tokens * group - pair)
            last_position = position + (pair + rows - 1) // group
            begin = _first_attended(position + pair // group, window) // BLOCK
            end = last_position // BLOCK + 1
            for block in range(begin, end):
                offset = plane + np.int64(block_table[block]) * kv_heads * BLOCK
                if pair == 0:
                    _prefetch_block(values, value_scales, offset, width)
                score_rows(
                    rows, scores, (block - begin) * BLOCK, scores.shape[1],
                    queries, query + pair * width, width,
                    keys, offset * width, width, key_scales, offset,
                )  # fmt: skip
            for row in range(rows):
                own = position + (pair + row) // group
                value_sums[row] = 0.0
                inverse_sums[row] = _softmax(
                    scores, row, cap, _first_attended(own, window), own, begin, end,
                    value_scales, block_table, plane, kv_heads,
                )  # fmt: skip
            for block in range(begin, end):
                offset = plane + np.int64(block_table[block]) * kv_heads * BLOCK
                if pair == 0 and head + 1 < kv_heads:
                    _prefetch_block(keys, key_scales, offset + BLOCK, width)
                add_weighted_values(
                    rows, width, value_sums, 0, width, scores, (block - begin) * BLOCK,
                    scores.shape[1], values, offset * width, width,
                )  # fmt: skip
            _write_output(rows, pair, group, head, width, row_out, value_sums, inverse_sums, output)


@inlined
def _write_output(
    rows: int, pair: int, group: int, head: int, width: int, row_out: int,
    value_sums: Any, inverse_sums: Any, output: Any,
) -> None:  # fmt: skip
    """Write a tile's value sums, normalized by its softmax sums, to `output`."""
    for row in range(rows):
        token, member = divmod(pair + row, group)
        to = (row_out + token) * output.shape[1] + (head * group + member) * width
        inverse_sum = splat(inverse_sums[row])
        for column in range(0, width, BLOCK):
            store(output, to + column, load(value_sums, row * width + column) * inverse_sum)


@inlined
def _prefetch_block(blocks: Any, scales: Any, start: int, width: int) -> None:
    """Prefetch a cache block and its scales."""
    line = _LINE_BYTES // blocks.itemsize
    for offset in range(0, width * BLOCK, line):
        prefetch(blocks, start * width + offset)
    if scales.size:
        prefetch(scales, start)


@inlined
def _first_attended(position: int, window: int) -> int:
    return max(0, position - window + 1) if window else 0


@inlined
def _bounded(numbers: Any, cap: Any) -> Any:
    """Return cap x tanh(numbers / cap); NaN stays NaN."""
    one, two = splat(np.float32(1.0)), splat(np.float32(2.0))
    bounded = cap * (one - two / (exp(two * numbers / cap) + one))
    return bounded + (numbers - numbers)


@inlined
def _softmax(
    scores: Any, row: int, cap: Any, lowest: int, highest: int, begin: int, end: int,
    value_scales: Any, block_table: Any, plane: int, kv_heads: int,
) -> Any:  # fmt: skip
    """Replace the scores of a row by e^(score - maximum), times the value scales if there are any.

    Only positions from `lowest` to `highest` count; the others are masked.

    Returns:
        1 / the sum of the exponentials.
    """
    start, length = row * scores.shape[1], (end - begin) * BLOCK
    if cap > 0:
        for offset in range(start, start + length, BLOCK):
            store(scores, offset, _bounded(load(scores, offset), splat(cap)))
    for offset in range(lowest - begin * BLOCK):
        scores[row, offset] = _MASKED
    for offset in range(highest + 1 - begin * BLOCK, length):
        scores[row, offset] = _MASKED
    peak = splat(_MASKED)
    for offset in range(start, start + length, BLOCK):
        peak = maximum(peak, load(scores, offset))
    peak = splat(reduce_max(peak))
    zero = splat(np.float32(0.0))
    weight_sum = zero
    for block in range(begin, end):
        offset = start + (block - begin) * BLOCK
        weight = exp(load(scores, offset) - peak)
        weight_sum = weight_sum + weight
        if value_scales.size:
            scale = load(value_scales, plane + np.int64(block_table[block]) * kv_heads * BLOCK)
            weight = where_above(weight, zero, weight * scale)
        store(scores, offset, weight)
    return np.float32(1.0) / reduce_sum(weight_sum)
