"""Fused element-wise kernels that run between a layer's matrix multiplications.

Each kernel makes one pass per token. Arguments that all of them share:

    accumulators  [rows x columns] output of a matrix multiplication, int32 or float32. Its value is
                  accumulators x row_scales[row] x column_scales[column] + bias[column]; the scales
                  of float32 are 1.
    output        [rows x columns] activations for the next matrix multiplication, float32, or 8-bit
                  integers with a scale per row: int8, or uint8 with panels.OFFSET added.
    row_buffer    scratch for one row.
    first, last   rows that are computed: first <= row < last.

    hidden        width of the residual stream without padding.

Sizes in memory are multiples of 16; what is beyond `hidden` is 0 and stays 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from packhorse.engines.packed.compiling import kernel
from packhorse.engines.packed.panels import PANEL
from packhorse.engines.packed.row_kernels import (
    apply_rope,
    dequantize,
    hadamard,
    multiply_row,
    norm_row,
    normalize_head,
    quantize_in_place,
    spread_of,
    spread_of_columns,
    write_row,
)
from packhorse.engines.packed.tiles import BLOCK
from packhorse.engines.packed.vectors import (
    LANES,
    exp,
    fma,
    load,
    maximum,
    reduce_max,
    reduce_sum,
    splat,
    store,
)

SILU, GELU_TANH, RELU2 = range(3)
"""Activation functions of the MLP."""


@kernel
def embed(
    tokens: Any,
    positions: Any,
    first: int,
    last: int,
    embeddings: Any,
    position_embeddings: Any,
    residual: Any,
) -> None:
    """Set residual[token] to its embedding, plus its position embedding if there are any.

    `embeddings` are [vocabulary, width], or float32 panels [panels, width, PANEL].
    """
    width = residual.shape[1]
    numbers_of = embeddings.reshape(embeddings.size)
    for token in range(first, last):
        row, offset = np.int64(tokens[token]) * width, token * width
        if embeddings.ndim == 3:
            start = np.int64(tokens[token]) // PANEL * width * PANEL + tokens[token] % PANEL
            for column in range(width):
                residual[token, column] = numbers_of[start + column * PANEL]
        for column in range(0, width, LANES):
            if embeddings.ndim == 3:
                numbers = load(residual, offset + column)
            else:
                numbers = load(embeddings, row + column)
            if position_embeddings.size:
                numbers = numbers + load(
                    position_embeddings, np.int64(positions[token]) * width + column
                )
            store(residual, offset + column, numbers)


@kernel
def normalize(
    residual: Any, first: int, last: int, weight: Any, bias: Any, hidden: int, is_layer_norm: bool,
    epsilon: Any, row_buffer: Any, output: Any, scales: Any,
) -> None:  # fmt: skip
    """Compute output = norm(residual): LayerNorm, or RMSNorm (Zhang and Sennrich 2019).

    Without a norm, `weight` is empty and output = residual.
    """
    for row in range(first, last):
        norm_row(residual, row, weight, bias, hidden, is_layer_norm, epsilon, row_buffer)
        write_row(row_buffer, row, residual.shape[1], output, scales)


@kernel
def add_and_normalize(
    accumulators: Any, row_scales: Any, column_scales: Any, product_bias: Any, residual: Any,
    first: int, last: int, post_weight: Any, weight: Any, bias: Any, hidden: int,
    is_layer_norm: bool, epsilon: Any, row_buffer: Any, output: Any, scales: Any,
) -> None:  # fmt: skip
    """Compute residual += accumulators + product_bias, then output = norm(residual).

    If `post_weight` is not empty, what is added is normalized first (RMSNorm with this gain).
    """
    width = residual.shape[1]
    for row in range(first, last):
        scale, offset = splat(row_scales[row]), row * width
        if post_weight.size:
            squares = splat(np.float32(0.0))
            for column in range(0, width, LANES):
                numbers = dequantize(
                    accumulators, offset + column, scale, column_scales, product_bias, column
                )
                store(row_buffer, column, numbers)
                squares = fma(numbers, numbers, squares)
            spread = spread_of(reduce_sum(squares) / np.float32(hidden) + epsilon)
            for column in range(0, width, LANES):
                numbers = load(row_buffer, column) * spread * load(post_weight, column)
                store(residual, offset + column, load(residual, offset + column) + numbers)
        else:
            for column in range(0, width, LANES):
                numbers = dequantize(
                    accumulators, offset + column, scale, column_scales, product_bias, column
                )
                store(residual, offset + column, load(residual, offset + column) + numbers)
        norm_row(residual, row, weight, bias, hidden, is_layer_norm, epsilon, row_buffer)
        write_row(row_buffer, row, width, output, scales)


@kernel
def split_heads(
    accumulators: Any, row_scales: Any, column_scales: Any, bias: Any, first: int, last: int,
    positions: Any, rotation_rows: Any, position_scales: Any, block_tables: Any, table_rows: Any,
    layer: int, first_rotation: int, cosines: Any, sines: Any, query_norm: Any, key_norm: Any,
    head_size: int, epsilon: Any, row_buffer: Any, queries: Any, keys: Any, values: Any,
    key_scales: Any, value_scales: Any,
) -> None:  # fmt: skip
    """Split a QKV product into queries, and keys and values in the cache.

    Queries and keys get RoPE; queries are also scaled by 1/sqrt(head_size). Keys and values are
    written in float32, or in int8 with a scale per token and head.

    With int8 keys, queries and keys are multiplied by a Hadamard matrix, which keeps their dot
    products and spreads outliers (QuaRot, arXiv 2404.00456, section 4).

    Args:
        accumulators: Columns are query heads, key heads, value heads.
        rotation_rows: [tokens] row of each token in a set of rotations.
        position_scales: [positions] factor of queries; empty if all are 1.
        table_rows: [tokens] row of `block_tables` of each token.
        first_rotation: First row of the layer's set in `cosines`; -1 if it rotates nothing.
        cosines: [rows, width / 2]. `sines` likewise.
        query_norm: [width], or [heads x width] if the norm is over all heads; empty without.
            `key_norm` likewise.
        queries: See `attention.attend`, also for the cache arrays.
    """
    kv_heads, capacity, group, width = queries.shape
    heads, columns = kv_heads * group, (kv_heads * group + 2 * kv_heads) * width
    flat, quantized = keys.reshape(keys.size), keys.itemsize == 1
    hadamard_order = 1
    while quantized and width % (2 * hadamard_order * LANES) == 0:
        hadamard_order *= 2
    query_scale = splat(np.float32(1.0 / (hadamard_order * np.sqrt(head_size))))
    flat_key_scales = key_scales.reshape(key_scales.size)
    flat_value_scales = value_scales.reshape(value_scales.size)
    for row in range(first, last):
        position, scale = np.int64(positions[row]), splat(row_scales[row])
        block = np.int64(block_tables[table_rows[row], position // BLOCK])
        offset = (np.int64(layer) * keys.shape[1] + block) * kv_heads
        lane = position % BLOCK
        query_factor = query_scale
        if position_scales.size:
            query_factor = query_scale * splat(position_scales[position])
        query_spread, key_spread = splat(np.float32(0.0)), splat(np.float32(0.0))
        if query_norm.size > width:
            query_spread = spread_of_columns(
                accumulators, row * columns, scale, column_scales, bias, 0, heads * width,
                heads * head_size, epsilon,
            )  # fmt: skip
        if key_norm.size > width:
            key_spread = spread_of_columns(
                accumulators, row * columns, scale, column_scales, bias, heads * width,
                (heads + kv_heads) * width, kv_heads * head_size, epsilon,
            )  # fmt: skip
        for head in range(heads + 2 * kv_heads):
            start = head * width
            for column in range(start, start + width, LANES):
                at = row * columns + column
                numbers = dequantize(accumulators, at, scale, column_scales, bias, column)
                store(row_buffer, column - start, numbers)
            if head < heads:
                if query_norm.size > width:
                    multiply_row(row_buffer, width, query_norm, start, query_spread)
                elif query_norm.size:
                    normalize_head(row_buffer, width, query_norm, head_size, epsilon)
                if first_rotation >= 0:
                    rotation = first_rotation + np.int64(rotation_rows[row])
                    apply_rope(row_buffer, width, rotation, cosines, sines)
                hadamard(row_buffer, width, hadamard_order)
                to = ((head // group * capacity + row) * group + head % group) * width
                for column in range(0, width, LANES):
                    store(queries, to + column, load(row_buffer, column) * query_factor)
            elif head < heads + kv_heads:
                if key_norm.size > width:
                    multiply_row(row_buffer, width, key_norm, start - heads * width, key_spread)
                elif key_norm.size:
                    normalize_head(row_buffer, width, key_norm, head_size, epsilon)
                if first_rotation >= 0:
                    rotation = first_rotation + np.int64(rotation_rows[row])
                    apply_rope(row_buffer, width, rotation, cosines, sines)
                hadamard(row_buffer, width, hadamard_order)
                to = offset + head - heads
                if quantized:
                    quantize_in_place(row_buffer, width, flat_key_scales, to * BLOCK + lane)
                for number in range(width):
                    flat[(to * width + number) * BLOCK + lane] = row_buffer[number]
            else:
                to = offset + head - heads - kv_heads
                if quantized:
                    quantize_in_place(row_buffer, width, flat_value_scales, to * BLOCK + lane)
                for column in range(0, width, LANES):
                    store(values, (to * BLOCK + lane) * width + column, load(row_buffer, column))


@kernel
def activate(
    accumulators: Any, row_scales: Any, column_scales: Any, bias: Any, first: int, last: int,
    width: int, gated: bool, activation: int, hadamard_order: int, row_buffer: Any, output: Any,
    scales: Any,
) -> None:  # fmt: skip
    """Compute the MLP's activation and, for int8, its online Hadamard rotation.

    The activation is f(first half) x second half of the columns if `gated`, else f(columns), where
    f is SiLU, GELU in its tanh form (Hendrycks and Gimpel 2016) or the square of ReLU. Then
    `hadamard_order` vectors at a time are multiplied by a Hadamard matrix of that order, without
    its normalizing factor; 1 for no rotation.
    """
    columns = 2 * width if gated else width
    one, zero = splat(np.float32(1.0)), splat(np.float32(0.0))
    for row in range(first, last):
        scale, start = splat(row_scales[row]), row * columns
        for column in range(0, width, LANES):
            gate = dequantize(accumulators, start + column, scale, column_scales, bias, column)
            factor = gate
            if gated:
                at = width + column
                factor = gate * dequantize(accumulators, start + at, scale, column_scales, bias, at)
            if activation == SILU:
                store(row_buffer, column, factor / (one + exp(zero - gate)))
            elif activation == GELU_TANH:
                inner = fma(splat(np.float32(0.044715)), gate * gate * gate, gate)
                steep = splat(np.float32(-2.0 * np.sqrt(2.0 / np.pi)))
                store(row_buffer, column, factor / (one + exp(inner * steep)))
            else:
                store(row_buffer, column, factor * maximum(zero, gate))
        if hadamard_order > 1:
            hadamard(row_buffer, width, hadamard_order)
        write_row(row_buffer, row, width, output, scales)


@kernel
def write_activations(
    rows: Any, first: int, last: int, row_buffer: Any, output: Any, scales: Any
) -> None:
    """Write float32 rows to `output`, quantized if it is int8."""
    width = rows.shape[1]
    for row in range(first, last):
        for column in range(0, width, LANES):
            store(row_buffer, column, load(rows, row * width + column))
        write_row(row_buffer, row, width, output, scales)


@kernel
def choose_best(
    accumulators: Any, row_scales: Any, column_scales: Any, start: int, count: int, width: int,
    stride: int, best_logits: Any, best_ids: Any,
) -> None:  # fmt: skip
    """Update the largest logit of each row and its token id; the first of equal ones wins.

    The columns begin at `start` in the vocabulary; rows are `stride` columns apart. Rows with NaN
    keep their previous values.
    """
    for row in range(count):
        scale, whole, first = splat(row_scales[row]), width - width % LANES, row * stride
        peak = splat(best_logits[row])
        for column in range(0, whole, LANES):
            scales = scale * load(column_scales, start + column)
            peak = maximum(load(accumulators, first + column) * scales, peak)
        if reduce_max(peak) > best_logits[row] or whole < width:
            for column in range(width):
                factor = row_scales[row] * column_scales[start + column]
                logit = np.float32(accumulators[row * stride + column]) * factor
                if logit > best_logits[row]:
                    best_logits[row], best_ids[row] = logit, start + column


@kernel
def write_logits(
    accumulators: Any, row_scales: Any, column_scales: Any, start: int, first: int, count: int,
    width: int, stride: int, logits: Any,
) -> None:  # fmt: skip
    """Set logits[i, start + column] to the dequantized accumulators of row first + i.

    Rows are `stride` columns apart, `width` of which are used.
    """
    for number in range(count):
        row = first + number
        for column in range(width):
            scale = row_scales[row] * column_scales[start + column]
            logits[number, start + column] = np.float32(accumulators[row * stride + column]) * scale
