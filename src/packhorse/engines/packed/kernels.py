"""What stands between the products of a layer, one pass over each row of tokens.

Common to all: `product` is what a matrix product gave, [rows x columns], int32 or float32; a number
is product x row_scales[row] x column_scales[column] + bias[column] (float32 products have scales of
1). `output` is what the next product takes, [rows x columns]: float32, or int8, each row divided by
its own scale. `held` is scratch of one row. Sizes are multiples of 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from packhorse.engines.packed.compiling import inlined, kernel
from packhorse.engines.packed.tiles import BLOCK
from packhorse.engines.packed.vectors import (
    LANES,
    absolute,
    exp,
    fma,
    larger,
    largest,
    load,
    rint,
    splat,
    store,
    total,
)

_SMALLEST = np.float32(1e-30)
_LEVELS = np.float32(127.0)


@kernel
def embed(tokens: Any, positions: Any, count: int, table: Any, learned: Any, stream: Any) -> None:
    """stream[token] = table[its id] + learned[its position], where positions are learned."""
    width = stream.shape[1]
    for token in range(count):
        row, place = np.int64(tokens[token]) * width, token * width
        for column in range(0, width, LANES):
            numbers = load(table, row + column)
            if learned.size:
                numbers = numbers + load(learned, np.int64(positions[token]) * width + column)
            store(stream, place + column, numbers)


@kernel
def normalize(
    stream: Any, count: int, weight: Any, bias: Any, centers: bool, epsilon: Any,
    held: Any, output: Any, scales: Any,
) -> None:  # fmt: skip
    """output = norm(stream): RMSNorm (Zhang and Sennrich 2019), or LayerNorm if it `centers`."""
    for row in range(count):
        _norm_row(stream, row, weight, bias, centers, epsilon, held)
        _emit(held, row, stream.shape[1], output, scales)


@kernel
def add_and_normalize(
    product: Any, row_scales: Any, column_scales: Any, added: Any, stream: Any, count: int,
    weight: Any, bias: Any, centers: bool, epsilon: Any, held: Any, output: Any, scales: Any,
) -> None:  # fmt: skip
    """stream += product + added (its bias); output = norm(stream)."""
    width = stream.shape[1]
    for row in range(count):
        scale, place = splat(row_scales[row]), row * width
        for column in range(0, width, LANES):
            numbers = _number(product, place + column, scale, column_scales, added, column)
            store(stream, place + column, load(stream, place + column) + numbers)
        _norm_row(stream, row, weight, bias, centers, epsilon, held)
        _emit(held, row, width, output, scales)


@kernel
def split_heads(
    product: Any, row_scales: Any, column_scales: Any, bias: Any, count: int,
    positions: Any, tables: Any, table_of: Any, layer: int, cosines: Any, sines: Any,
    query_norm: Any, key_norm: Any, head_size: int, epsilon: Any, held: Any,
    queries: Any, keys: Any, values: Any, key_scales: Any, value_scales: Any,
) -> None:  # fmt: skip
    """Queries, rotated and scaled by 1/sqrt(head_size), into `queries`; keys, rotated, and values
    into the cache, int8 with a scale for each token and head, or float32.

    Columns of `product`: query heads, key heads, value heads. table_of: [tokens] row of `tables`.
    cosines, sines: [positions, width / 2], empty where positions are learned. query_norm, key_norm:
    [width], empty without norms of heads. For the other arrays see `attention.attend`.

    Beside int8 keys, queries and keys are turned by a Hadamard matrix, which leaves their products
    as they are and spreads what stands out (QuaRot, arXiv 2404.00456, section 4).
    """
    kv_heads, capacity, group, width = queries.shape
    heads, columns = kv_heads * group, (kv_heads * group + 2 * kv_heads) * width
    flat, quantized = keys.reshape(keys.size), keys.itemsize == 1
    turned = 1
    while quantized and width % (2 * turned * LANES) == 0:
        turned *= 2
    shrink = splat(np.float32(1.0 / (turned * np.sqrt(head_size))))
    flat_key_scales = key_scales.reshape(key_scales.size)
    flat_value_scales = value_scales.reshape(value_scales.size)
    for row in range(count):
        position, scale = np.int64(positions[row]), splat(row_scales[row])
        block = np.int64(tables[table_of[row], position // BLOCK])
        place = (np.int64(layer) * keys.shape[1] + block) * kv_heads
        lane = position % BLOCK
        for head in range(heads + 2 * kv_heads):
            start = head * width
            for column in range(start, start + width, LANES):
                at = row * columns + column
                numbers = _number(product, at, scale, column_scales, bias, column)
                store(held, column - start, numbers)
            if head < heads:
                _turn(held, width, position, cosines, sines, query_norm, head_size, epsilon)
                _hadamard(held, width, turned)
                to = ((head // group * capacity + row) * group + head % group) * width
                for column in range(0, width, LANES):
                    store(queries, to + column, load(held, column) * shrink)
            elif head < heads + kv_heads:
                _turn(held, width, position, cosines, sines, key_norm, head_size, epsilon)
                _hadamard(held, width, turned)
                to = place + head - heads
                if quantized:
                    _scale_down(held, width, flat_key_scales, to * BLOCK + lane)
                for number in range(width):
                    flat[(to * width + number) * BLOCK + lane] = held[number]
            else:
                to = place + head - heads - kv_heads
                if quantized:
                    _scale_down(held, width, flat_value_scales, to * BLOCK + lane)
                for column in range(0, width, LANES):
                    store(values, (to * BLOCK + lane) * width + column, load(held, column))


@kernel
def activate(
    product: Any, row_scales: Any, column_scales: Any, bias: Any, count: int, width: int,
    gated: bool, turned: int, held: Any, output: Any, scales: Any,
) -> None:  # fmt: skip
    """The MLP's activation: SiLU(first half) x second half of the columns if `gated`, else GELU in
    its tanh form (Hendrycks and Gimpel 2016). `turned` vectors at a time then go through a
    Hadamard matrix of that order (without its factor), 1 for none."""
    columns = 2 * width if gated else width
    one, zero = splat(np.float32(1.0)), splat(np.float32(0.0))
    for row in range(count):
        scale, start = splat(row_scales[row]), row * columns
        for column in range(0, width, LANES):
            gate = _number(product, start + column, scale, column_scales, bias, column)
            if gated:
                at = width + column
                up = _number(product, start + at, scale, column_scales, bias, at)
                store(held, column, gate * up / (one + exp(zero - gate)))
            else:
                inner = fma(splat(np.float32(0.044715)), gate * gate * gate, gate)
                steep = splat(np.float32(-2.0 * np.sqrt(2.0 / np.pi)))
                store(held, column, gate / (one + exp(inner * steep)))
        if turned > 1:
            _hadamard(held, width, turned)
        _emit(held, row, width, output, scales)


@kernel
def emit_rows(rows: Any, count: int, held: Any, output: Any, scales: Any) -> None:
    """output = rows."""
    width = rows.shape[1]
    for row in range(count):
        for column in range(0, width, LANES):
            store(held, column, load(rows, row * width + column))
        _emit(held, row, width, output, scales)


@kernel
def choose_best(
    product: Any, row_scales: Any, column_scales: Any, start: int, count: int, width: int,
    best: Any, best_at: Any,
) -> None:  # fmt: skip
    """Keeps the largest logit of each row and where it was, the first of equals; columns begin at
    `start` of the vocabulary. Rows that are no numbers keep what they had."""
    for row in range(count):
        scale, whole, first = splat(row_scales[row]), width - width % LANES, row * width
        peak = splat(best[row])
        for column in range(0, whole, LANES):
            scales = scale * load(column_scales, start + column)
            peak = larger(load(product, first + column) * scales, peak)
        if largest(peak) > best[row] or whole < width:
            for column in range(width):
                factor = row_scales[row] * column_scales[start + column]
                logit = np.float32(product[row * width + column]) * factor
                if logit > best[row]:
                    best[row], best_at[row] = logit, start + column


@kernel
def write_logits(
    product: Any, row_scales: Any, column_scales: Any, start: int, count: int, width: int,
    logits: Any,
) -> None:  # fmt: skip
    """logits[row, start + column] = product."""
    for row in range(count):
        for column in range(width):
            scale = row_scales[row] * column_scales[start + column]
            logits[row, start + column] = np.float32(product[row * width + column]) * scale


@inlined
def _number(product: Any, at: int, scale: Any, scales: Any, bias: Any, column: int) -> Any:
    """16 numbers of a product."""
    return fma(load(product, at), scale * load(scales, column), load(bias, column))


@inlined
def _norm_row(
    stream: Any, row: int, weight: Any, bias: Any, centers: bool, epsilon: Any, held: Any
) -> None:
    width = stream.shape[1]
    place, zero = row * width, splat(np.float32(0.0))
    mean = zero
    if centers:
        summed = zero
        for column in range(0, width, LANES):
            summed = summed + load(stream, place + column)
        mean = splat(total(summed) / np.float32(width))
    squares = zero
    for column in range(0, width, LANES):
        numbers = load(stream, place + column) - mean
        store(held, column, numbers)
        squares = fma(numbers, numbers, squares)
    square = total(squares) / np.float32(width) + epsilon
    spread = splat(np.float32(1.0) / np.sqrt(square) + (square - square))  # infinite: no number
    for column in range(0, width, LANES):
        numbers = load(held, column) * spread * load(weight, column)
        store(held, column, numbers + load(bias, column) if centers else numbers)


@inlined
def _emit(held: Any, row: int, width: int, output: Any, scales: Any) -> None:
    """One row as the next product takes it; an int8 row's scale is its largest number / 127."""
    place = row * width
    if output.itemsize > 1:
        for column in range(0, width, LANES):
            store(output, place + column, load(held, column))
        return
    factor = splat(_shrink(held, width, scales, row))
    for column in range(0, width, LANES):
        store(output, place + column, load(held, column) * factor)


@inlined
def _shrink(held: Any, width: int, scales: Any, at: int) -> Any:
    """The factor that brings a row to -127 to 127; scales[at] is what undoes it."""
    peak = splat(np.float32(0.0))
    for column in range(0, width, LANES):
        peak = larger(peak, absolute(load(held, column)))
    highest = max(largest(peak), _SMALLEST)
    scales[at] = highest / _LEVELS
    return _LEVELS / highest


@inlined
def _scale_down(held: Any, width: int, scales: Any, at: int) -> None:
    """Brings a head to whole numbers from -127 to 127, in place."""
    factor = splat(_shrink(held, width, scales, at))
    for column in range(0, width, LANES):
        store(held, column, rint(load(held, column) * factor))


@inlined
def _turn(
    held: Any, width: int, position: Any, cosines: Any, sines: Any, norm: Any, head_size: int,
    epsilon: Any,
) -> None:  # fmt: skip
    """Norms and rotates one head in place; number i is turned with number i + width / 2 (Su et al.
    2021, in the order of transformers' rotate_half)."""
    if norm.size:
        squares = splat(np.float32(0.0))
        for column in range(0, width, LANES):
            squares = fma(load(held, column), load(held, column), squares)
        spread = np.float32(1.0) / np.sqrt(total(squares) / np.float32(head_size) + epsilon)
        for column in range(0, width, LANES):
            store(held, column, load(held, column) * splat(spread) * load(norm, column))
    if cosines.size:
        half = width // 2
        for column in range(0, half, LANES):
            cosine = load(cosines, position * half + column)
            sine = load(sines, position * half + column)
            first, second = load(held, column), load(held, half + column)
            store(held, column, first * cosine - second * sine)
            store(held, half + column, second * cosine + first * sine)


@inlined
def _hadamard(held: Any, width: int, turned: int) -> None:
    """Lane by lane, the numbers of `turned` neighbouring vectors through a Hadamard matrix."""
    for start in range(0, width, turned * LANES):
        reach = LANES
        while reach < turned * LANES:
            for pair in range(start, start + turned * LANES, 2 * reach):
                for column in range(pair, pair + reach, LANES):
                    first, second = load(held, column), load(held, column + reach)
                    store(held, column, first + second)
                    store(held, column + reach, first - second)
            reach *= 2
