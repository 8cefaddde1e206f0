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

SILU, GELU_TANH, RELU2 = range(3)
"""Activation functions of the MLP."""
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
    residual: Any, first: int, last: int, weight: Any, bias: Any, hidden: int, is_layer_norm: bool,
    epsilon: Any, row_buffer: Any, output: Any, scales: Any,
) -> None:  # fmt: skip
    """Compute output = norm(residual): LayerNorm, or RMSNorm (Zhang and Sennrich 2019).

    Without a norm, `weight` is empty and output = residual.
    """
    for row in range(first, last):
        _norm_row(residual, row, weight, bias, hidden, is_layer_norm, epsilon, row_buffer)
        _write_row(row_buffer, row, residual.shape[1], output, scales)


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
                numbers = _dequantize(
                    accumulators, offset + column, scale, column_scales, product_bias, column
                )
                store(row_buffer, column, numbers)
                squares = fma(numbers, numbers, squares)
            spread = _spread_of(reduce_sum(squares) / np.float32(hidden) + epsilon)
            for column in range(0, width, LANES):
                numbers = load(row_buffer, column) * spread * load(post_weight, column)
                store(residual, offset + column, load(residual, offset + column) + numbers)
        else:
            for column in range(0, width, LANES):
                numbers = _dequantize(
                    accumulators, offset + column, scale, column_scales, product_bias, column
                )
                store(residual, offset + column, load(residual, offset + column) + numbers)
        _norm_row(residual, row, weight, bias, hidden, is_layer_norm, epsilon, row_buffer)
        _write_row(row_buffer, row, width, output, scales)


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
            query_spread = _spread_of_columns(
                accumulators, row * columns, scale, column_scales, bias, 0, heads * width,
                heads * head_size, epsilon,
            )  # fmt: skip
        if key_norm.size > width:
            key_spread = _spread_of_columns(
                accumulators, row * columns, scale, column_scales, bias, heads * width,
                (heads + kv_heads) * width, kv_heads * head_size, epsilon,
            )  # fmt: skip
        for head in range(heads + 2 * kv_heads):
            start = head * width
            for column in range(start, start + width, LANES):
                at = row * columns + column
                numbers = _dequantize(accumulators, at, scale, column_scales, bias, column)
                store(row_buffer, column - start, numbers)
            if head < heads:
                if query_norm.size > width:
                    _multiply_row(row_buffer, width, query_norm, start, query_spread)
                elif query_norm.size:
                    _normalize_head(row_buffer, width, query_norm, head_size, epsilon)
                if first_rotation >= 0:
                    rotation = first_rotation + np.int64(rotation_rows[row])
                    _apply_rope(row_buffer, width, rotation, cosines, sines)
                _hadamard(row_buffer, width, hadamard_order)
                to = ((head // group * capacity + row) * group + head % group) * width
                for column in range(0, width, LANES):
                    store(queries, to + column, load(row_buffer, column) * query_factor)
            elif head < heads + kv_heads:
                if key_norm.size > width:
                    _multiply_row(row_buffer, width, key_norm, start - heads * width, key_spread)
                elif key_norm.size:
                    _normalize_head(row_buffer, width, key_norm, head_size, epsilon)
                if first_rotation >= 0:
                    rotation = first_rotation + np.int64(rotation_rows[row])
                    _apply_rope(row_buffer, width, rotation, cosines, sines)
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
            gate = _dequantize(accumulators, start + column, scale, column_scales, bias, column)
            factor = gate
            if gated:
                at = width + column
                factor = gate * _dequantize(
                    accumulators, start + at, scale, column_scales, bias, at
                )
            if activation == SILU:
                store(row_buffer, column, factor / (one + exp(zero - gate)))
            elif activation == GELU_TANH:
                inner = fma(splat(np.float32(0.044715)), gate * gate * gate, gate)
                steep = splat(np.float32(-2.0 * np.sqrt(2.0 / np.pi)))
                store(row_buffer, column, factor / (one + exp(inner * steep)))
            else:
                store(row_buffer, column, factor * maximum(zero, gate))
        if hadamard_order > 1:
            _hadamard(row_buffer, width, hadamard_order)
        _write_row(row_buffer, row, width, output, scales)


@kernel
def route(
    accumulators: Any, row_scales: Any, column_scales: Any, bias: Any, rows: int, stride: int,
    count: int, per_token: int, normalizes: bool, row_buffer: Any, weights: Any, starts: Any,
    places: Any, owners: Any, tokens: Any,
) -> None:  # fmt: skip
    """Choose the experts of each token and sort the pairs of token and expert by expert.

    Experts are chosen by the softmax over all of them; the first of equal ones wins.

    Args:
        accumulators: [rows x stride] product of the router.
        count: Number of experts.
        per_token: Number of experts per token.
        normalizes: Whether the weights of a token add up to 1.
        weights: [rows x per_token] output.
        starts: [experts + 1] output: first sorted pair of each expert.
        places: [rows x per_token] output: place of each pair in the order by expert.
        owners: [rows x per_token] output: expert of each sorted pair.
        tokens: [rows x per_token] output: token of each sorted pair.
    """
    starts[:] = 0
    for row in range(rows):
        peak = np.float32(-np.inf)
        for expert in range(count):
            scale = row_scales[row] * column_scales[expert]
            logit = np.float32(accumulators[row * stride + expert]) * scale + bias[expert]
            row_buffer[expert] = logit
            peak = max(peak, logit)
        total = np.float32(0.0)
        for expert in range(count):
            row_buffer[expert] = np.exp(row_buffer[expert] - peak)
            total += row_buffer[expert]
        chosen = np.float32(0.0)
        for slot in range(per_token):
            best = -1
            for expert in range(count):
                if row_buffer[expert] >= 0 and (best < 0 or row_buffer[expert] > row_buffer[best]):
                    best = expert
            if best < 0:  # the products are not finite
                best, row_buffer[0] = 0, np.nan
            pair = row * per_token + slot
            weights[pair], places[pair] = row_buffer[best], best
            chosen += row_buffer[best]
            row_buffer[best] = -1.0
            starts[best + 1] += 1
        divisor = chosen if normalizes else total
        for pair in range(row * per_token, (row + 1) * per_token):
            weights[pair] /= divisor
    for expert in range(count):
        starts[expert + 1] += starts[expert]
    for pair in range(rows * per_token):
        expert = places[pair]
        place = starts[expert]
        starts[expert] += 1
        places[pair], owners[place], tokens[place] = place, expert, pair // per_token
    for expert in range(count, 0, -1):
        starts[expert] = starts[expert - 1]
    starts[0] = 0


@kernel
def gather(
    activations: Any, scales: Any, tokens: Any, first: int, last: int, hidden: int, output: Any,
    output_scales: Any,
) -> None:  # fmt: skip
    """Copy the activations [rows x hidden] of pairs `first` to `last` in the order by expert."""
    for pair in range(first, last):
        start, to = np.int64(tokens[pair]) * hidden, pair * hidden
        for column in range(hidden):
            output[to + column] = activations[start + column]
        output_scales[pair] = scales[tokens[pair]]


@kernel
def combine_and_normalize(
    accumulators: Any, pair_scales: Any, column_scales: Any, product_bias: Any, weights: Any,
    places: Any, owners: Any, per_token: int, residual: Any, first: int, last: int, weight: Any,
    bias: Any, hidden: int, is_layer_norm: bool, epsilon: Any, row_buffer: Any, output: Any,
    scales: Any,
) -> None:  # fmt: skip
    """Compute residual += sum of the experts of each token, then output = norm(residual).

    `accumulators` are [pairs x width], `column_scales` and `product_bias` [experts x width]; the
    other arguments are those of `route` and `add_and_normalize`.
    """
    width = residual.shape[1]
    for row in range(first, last):
        offset = row * width
        for pair in range(row * per_token, (row + 1) * per_token):
            place = np.int64(places[pair])
            scale, share = splat(pair_scales[place]), splat(weights[pair])
            expert = np.int64(owners[place]) * width
            for column in range(0, width, LANES):
                numbers = _dequantize(
                    accumulators, place * width + column, scale, column_scales, product_bias,
                    expert + column,
                )  # fmt: skip
                total = fma(numbers, share, load(residual, offset + column))
                store(residual, offset + column, total)
        _norm_row(residual, row, weight, bias, hidden, is_layer_norm, epsilon, row_buffer)
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
    hidden: int,
    is_layer_norm: bool,
    epsilon: Any,
    row_buffer: Any,
) -> None:
    width = residual.shape[1]
    offset, zero = row * width, splat(np.float32(0.0))
    if not weight.size:
        for column in range(0, width, LANES):
            store(row_buffer, column, load(residual, offset + column))
        return
    mean, padding = zero, np.float32(0.0)
    if is_layer_norm:
        summed = zero
        for column in range(0, width, LANES):
            summed = summed + load(residual, offset + column)
        average = reduce_sum(summed) / np.float32(hidden)
        mean, padding = splat(average), average * average * np.float32(width - hidden)
    squares = zero
    for column in range(0, width, LANES):
        numbers = load(residual, offset + column) - mean
        store(row_buffer, column, numbers)
        squares = fma(numbers, numbers, squares)
    spread = _spread_of((reduce_sum(squares) - padding) / np.float32(hidden) + epsilon)
    for column in range(0, width, LANES):
        numbers = load(row_buffer, column) * spread * load(weight, column)
        store(row_buffer, column, numbers + load(bias, column) if is_layer_norm else numbers)


@inlined
def _spread_of(square: Any) -> Any:
    """Return a vector of 1 / sqrt(square); NaN if it overflows."""
    return splat(np.float32(1.0) / np.sqrt(square) + (square - square))


@inlined
def _spread_of_columns(
    accumulators: Any, offset: int, scale: Any, column_scales: Any, bias: Any, first: int,
    last: int, count: int, epsilon: Any,
) -> Any:  # fmt: skip
    """Return 1 / the root mean square of columns of a dequantized row, `count` without padding."""
    squares = splat(np.float32(0.0))
    for column in range(first, last, LANES):
        numbers = _dequantize(accumulators, offset + column, scale, column_scales, bias, column)
        squares = fma(numbers, numbers, squares)
    return _spread_of(reduce_sum(squares) / np.float32(count) + epsilon)


@inlined
def _multiply_row(row_buffer: Any, width: int, gains: Any, start: int, factor: Any) -> None:
    """Multiply a row by `factor` and by gains from `start` on, in place."""
    for column in range(0, width, LANES):
        numbers = load(row_buffer, column) * factor * load(gains, start + column)
        store(row_buffer, column, numbers)


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
def _normalize_head(row_buffer: Any, width: int, norm: Any, head_size: int, epsilon: Any) -> None:
    """Normalize one head in place."""
    squares = splat(np.float32(0.0))
    for column in range(0, width, LANES):
        squares = fma(load(row_buffer, column), load(row_buffer, column), squares)
    spread = np.float32(1.0) / np.sqrt(reduce_sum(squares) / np.float32(head_size) + epsilon)
    _multiply_row(row_buffer, width, norm, 0, splat(spread))


@inlined
def _apply_rope(row_buffer: Any, width: int, rotation: Any, cosines: Any, sines: Any) -> None:
    """Apply row `rotation` of the rotary position embeddings to one head, in place.

    Channel i is paired with channel i + width / 2 (Su et al. 2021, in the order of transformers'
    rotate_half).
    """
    half = width // 2
    for column in range(0, half, LANES):
        cosine = load(cosines, rotation * half + column)
        sine = load(sines, rotation * half + column)
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
