"""Fused element-wise kernels that run between a layer's matrix multiplications.

Each kernel makes one pass per token. Arguments that all of them share:

    accumulators  [rows x columns] output of a matrix multiplication, int32 or float32. Its value is
                  accumulators x row_scales[row] x column_scales[column] + bias[column]; the scales
                  of float32 are 1.
    output        [rows x columns] activations for the next matrix multiplication, float32, or 8-bit
                  integers with a scale per row: int8, or uint8 with panels.OFFSET added.
    row_buffer    scratch for one row.
    first, last   rows that are computed: first <= row < last.

Sizes are multiples of 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from packhorse.engines.packed.compiling import inlined, kernel
from packhorse.engines.packed.panels import PANEL
from packhorse.engines.packed.tiles import BLOCK
from packhorse.engines.packed.vectors import (
    LANES,
    absolute,
    exp,
    fma,
    load,
    maximum,
    reduce_max,
    reduce_sum,
    rint,
    splat,
    store,
)

_SMALLEST = np.float32(1e-30)
_LEVELS = np.float32(127.0)


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
    residual: Any, first: int, last: int, weight: Any, bias: Any, is_layer_norm: bool, epsilon: Any,
    row_buffer: Any, output: Any, scales: Any,
) -> None:  # fmt: skip
    """Compute output = norm(residual): LayerNorm, or RMSNorm (Zhang and Sennrich 2019)."""
    for row in range(first, last):
        _norm_row(residual, row, weight, bias, is_layer_norm, epsilon, row_buffer)
        _write_row(row_buffer, row, residual.shape[1], output, scales)


@kernel
def add_and_normalize(
    accumulators: Any, row_scales: Any, column_scales: Any, product_bias: Any, residual: Any,
    first: int, last: int, weight: Any, bias: Any, is_layer_norm: bool, epsilon: Any,
    row_buffer: Any, output: Any, scales: Any,
) -> None:  # fmt: skip
    """Compute residual += accumulators + product_bias, then output = norm(residual)."""
    width = residual.shape[1]
    for row in range(first, last):
        scale, offset = splat(row_scales[row]), row * width
        for column in range(0, width, LANES):
            numbers = _dequantize(
                accumulators, offset + column, scale, column_scales, product_bias, column
            )
            store(residual, offset + column, load(residual, offset + column) + numbers)
        _norm_row(residual, row, weight, bias, is_layer_norm, epsilon, row_buffer)
        _write_row(row_buffer, row, width, output, scales)


@kernel
def split_heads(
    accumulators: Any, row_scales: Any, column_scales: Any, bias: Any, first: int, last: int,
    positions: Any, block_tables: Any, table_rows: Any, layer: int, cosines: Any, sines: Any,
    query_norm: Any, key_norm: Any, head_size: int, epsilon: Any, row_buffer: Any,
    queries: Any, keys: Any, values: Any, key_scales: Any, value_scales: Any,
) -> None:  # fmt: skip
    """Split a QKV product into queries, and keys and values in the cache.

    Queries and keys get RoPE; queries are also scaled by 1/sqrt(head_size). Keys and values are
    written in float32, or in int8 with a scale per token and head.

    With int8 keys, queries and keys are multiplied by a Hadamard matrix, which keeps their dot
    products and spreads outliers (QuaRot, arXiv 2404.00456, section 4).

    Args:
        accumulators: Columns are query heads, key heads, value heads.
        table_rows: [tokens] row of `block_tables` of each token.
        cosines: [positions, width / 2]; empty for learned positions. `sines` likewise.
        query_norm: [width]; empty without head norms. `key_norm` likewise.
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
        for head in range(heads + 2 * kv_heads):
            start = head * width
            for column in range(start, start + width, LANES):
                at = row * columns + column
                numbers = _dequantize(accumulators, at, scale, column_scales, bias, column)
                store(row_buffer, column - start, numbers)
            if head < heads:
                _apply_rope(
                    row_buffer, width, position, cosines, sines, query_norm, head_size, epsilon
                )
                _hadamard(row_buffer, width, hadamard_order)
                to = ((head // group * capacity + row) * group + head % group) * width
                for column in range(0, width, LANES):
                    store(queries, to + column, load(row_buffer, column) * query_scale)
            elif head < heads + kv_heads:
                _apply_rope(
                    row_buffer, width, position, cosines, sines, key_norm, head_size, epsilon
                )
                _hadamard(row_buffer, width, hadamard_order)
                to = offset + head - heads
                if quantized:
                    _quantize_in_place(row_buffer, width, flat_key_scales, to * BLOCK + lane)
                for number in range(width):
                    flat[(to * width + number) * BLOCK + lane] = row_buffer[number]
            else:
                to = offset + head - heads - kv_heads
                if quantized:
                    _quantize_in_place(row_buffer, width, flat_value_scales, to * BLOCK + lane)
                for column in range(0, width, LANES):
                    store(values, (to * BLOCK + lane) * width + column, load(row_buffer, column))


@kernel
def activate(
    accumulators: Any, row_scales: Any, column_scales: Any, bias: Any, first: int, last: int,
    width: int, gated: bool, hadamard_order: int, row_buffer: Any, output: Any, scales: Any,
) -> None:  # fmt: skip
    """Compute the MLP's activation and, for int8, its online Hadamard rotation.

    The activation is SiLU(first half) x second half of the columns if `gated`, else GELU in its
    tanh form (Hendrycks and Gimpel 2016). Then `hadamard_order` vectors at a time are multiplied by
    a Hadamard matrix of that order, without its normalizing factor; 1 for no rotation.
    """
    columns = 2 * width if gated else width
    one, zero = splat(np.float32(1.0)), splat(np.float32(0.0))
    for row in range(first, last):
        scale, start = splat(row_scales[row]), row * columns
        for column in range(0, width, LANES):
            gate = _dequantize(accumulators, start + column, scale, column_scales, bias, column)
            if gated:
                at = width + column
                up = _dequantize(accumulators, start + at, scale, column_scales, bias, at)
                store(row_buffer, column, gate * up / (one + exp(zero - gate)))
            else:
                inner = fma(splat(np.float32(0.044715)), gate * gate * gate, gate)
                steep = splat(np.float32(-2.0 * np.sqrt(2.0 / np.pi)))
                store(row_buffer, column, gate / (one + exp(inner * steep)))
        if hadamard_order > 1:
            _hadamard(row_buffer, width, hadamard_order)
        _write_row(row_buffer, row, width, output, scales)


@kernel
def write_activations(
    rows: Any, first: int, last: int, row_buffer: Any, output: Any, scales: Any
) -> None:
    """Write float32 rows to `output`, quantized if it is int8."""
    width = rows.shape[1]
    for row in range(first, last):
        for column in range(0, width, LANES):
            store(row_buffer, column, load(rows, row * width + column))
        _write_row(row_buffer, row, width, output, scales)


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


@inlined
def _dequantize(accumulators: Any, at: int, scale: Any, scales: Any, bias: Any, column: int) -> Any:
    """Return 16 dequantized elements."""
    return fma(load(accumulators, at), scale * load(scales, column), load(bias, column))


@inlined
def _norm_row(
    residual: Any,
    row: int,
    weight: Any,
    bias: Any,
    is_layer_norm: bool,
    epsilon: Any,
    row_buffer: Any,
) -> None:
    width = residual.shape[1]
    offset, zero = row * width, splat(np.float32(0.0))
    mean = zero
    if is_layer_norm:
        summed = zero
        for column in range(0, width, LANES):
            summed = summed + load(residual, offset + column)
        mean = splat(reduce_sum(summed) / np.float32(width))
    squares = zero
    for column in range(0, width, LANES):
        numbers = load(residual, offset + column) - mean
        store(row_buffer, column, numbers)
        squares = fma(numbers, numbers, squares)
    square = reduce_sum(squares) / np.float32(width) + epsilon
    spread = splat(np.float32(1.0) / np.sqrt(square) + (square - square))  # NaN if it overflows
    for column in range(0, width, LANES):
        numbers = load(row_buffer, column) * spread * load(weight, column)
        store(row_buffer, column, numbers + load(bias, column) if is_layer_norm else numbers)


@inlined
def _write_row(row_buffer: Any, row: int, width: int, output: Any, scales: Any) -> None:
    """Write one row of activations; the scale of an int8 row is its largest magnitude / 127."""
    offset = row * width
    if output.itemsize > 1:
        for column in range(0, width, LANES):
            store(output, offset + column, load(row_buffer, column))
        return
    factor = splat(_compute_int8_factor(row_buffer, width, scales, row))
    for column in range(0, width, LANES):
        store(output, offset + column, load(row_buffer, column) * factor)


@inlined
def _compute_int8_factor(row_buffer: Any, width: int, scales: Any, at: int) -> Any:
    """Return the factor that maps a row to -127..127 and store its inverse in scales[at]."""
    peak = splat(np.float32(0.0))
    for column in range(0, width, LANES):
        peak = maximum(peak, absolute(load(row_buffer, column)))
    highest = max(reduce_max(peak), _SMALLEST)
    scales[at] = highest / _LEVELS
    return _LEVELS / highest


@inlined
def _quantize_in_place(row_buffer: Any, width: int, scales: Any, at: int) -> None:
    """Round a head to integers from -127 to 127 in place."""
    factor = splat(_compute_int8_factor(row_buffer, width, scales, at))
    for column in range(0, width, LANES):
        store(row_buffer, column, rint(load(row_buffer, column) * factor))


@inlined
def _apply_rope(
    row_buffer: Any, width: int, position: Any, cosines: Any, sines: Any, norm: Any, head_size: int,
    epsilon: Any,
) -> None:  # fmt: skip
    """Normalize one head and apply rotary position embeddings, in place.

    Channel i is paired with channel i + width / 2 (Su et al. 2021, in the order of transformers'
    rotate_half).
    """
    if norm.size:
        squares = splat(np.float32(0.0))
        for column in range(0, width, LANES):
            squares = fma(load(row_buffer, column), load(row_buffer, column), squares)
        spread = np.float32(1.0) / np.sqrt(reduce_sum(squares) / np.float32(head_size) + epsilon)
        for column in range(0, width, LANES):
            store(row_buffer, column, load(row_buffer, column) * splat(spread) * load(norm, column))
    if cosines.size:
        half = width // 2
        for column in range(0, half, LANES):
            cosine = load(cosines, position * half + column)
            sine = load(sines, position * half + column)
            first, second = load(row_buffer, column), load(row_buffer, half + column)
            store(row_buffer, column, first * cosine - second * sine)
            store(row_buffer, half + column, second * cosine + first * sine)


@inlined
def _hadamard(row_buffer: Any, width: int, hadamard_order: int) -> None:
    """Multiply `hadamard_order` neighbouring vectors by a Hadamard matrix, lane by lane."""
    for start in range(0, width, hadamard_order * LANES):
        stride = LANES
        while stride < hadamard_order * LANES:
            for pair in range(start, start + hadamard_order * LANES, 2 * stride):
                for column in range(pair, pair + stride, LANES):
                    first, second = load(row_buffer, column), load(row_buffer, column + stride)
                    store(row_buffer, column, first + second)
                    store(row_buffer, column + stride, first - second)
            stride *= 2
