"""What the kernels of `kernels` and `expert_kernels` do with one row, compiled into them."""

from __future__ import annotations

from typing import Any

import numpy as np

from packhorse.engines.packed.compiling import inlined
from packhorse.engines.packed.vectors import (
    LANES,
    absolute,
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


@inlined
def dequantize(accumulators: Any, at: int, scale: Any, scales: Any, bias: Any, column: int) -> Any:
    """Return 16 dequantized elements."""
    return fma(load(accumulators, at), scale * load(scales, column), load(bias, column))


@inlined
def norm_row(
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
    spread = spread_of((reduce_sum(squares) - padding) / np.float32(hidden) + epsilon)
    for column in range(0, width, LANES):
        numbers = load(row_buffer, column) * spread * load(weight, column)
        store(row_buffer, column, numbers + load(bias, column) if is_layer_norm else numbers)


@inlined
def spread_of(square: Any) -> Any:
    """Return a vector of 1 / sqrt(square); NaN if it overflows."""
    return splat(np.float32(1.0) / np.sqrt(square) + (square - square))


@inlined
def spread_of_columns(
    accumulators: Any, offset: int, scale: Any, column_scales: Any, bias: Any, first: int,
    last: int, count: int, epsilon: Any,
) -> Any:  # fmt: skip
    """Return 1 / the root mean square of columns of a dequantized row, `count` without padding."""
    squares = splat(np.float32(0.0))
    for column in range(first, last, LANES):
        numbers = dequantize(accumulators, offset + column, scale, column_scales, bias, column)
        squares = fma(numbers, numbers, squares)
    return spread_of(reduce_sum(squares) / np.float32(count) + epsilon)


@inlined
def multiply_row(row_buffer: Any, width: int, gains: Any, start: int, factor: Any) -> None:
    """Multiply a row by `factor` and by gains from `start` on, in place."""
    for column in range(0, width, LANES):
        numbers = load(row_buffer, column) * factor * load(gains, start + column)
        store(row_buffer, column, numbers)


@inlined
def write_row(row_buffer: Any, row: int, width: int, output: Any, scales: Any) -> None:
    """Write one row of activations; the scale of an int8 row is its largest magnitude / 127."""
    offset = row * width
    if output.itemsize > 1:
        for column in range(0, width, LANES):
            store(output, offset + column, load(row_buffer, column))
        return
    factor = splat(compute_int8_factor(row_buffer, width, scales, row))
    for column in range(0, width, LANES):
        store(output, offset + column, load(row_buffer, column) * factor)


@inlined
def compute_int8_factor(row_buffer: Any, width: int, scales: Any, at: int) -> Any:
    """Return the factor that maps a row to -127..127 and store its inverse in scales[at]."""
    peak = splat(np.float32(0.0))
    for column in range(0, width, LANES):
        peak = maximum(peak, absolute(load(row_buffer, column)))
    highest = max(reduce_max(peak), _SMALLEST)
    scales[at] = highest / _LEVELS
    return _LEVELS / highest


@inlined
def quantize_in_place(row_buffer: Any, width: int, scales: Any, at: int) -> None:
    """Round a head to integers from -127 to 127 in place."""
    factor = splat(compute_int8_factor(row_buffer, width, scales, at))
    for column in range(0, width, LANES):
        store(row_buffer, column, rint(load(row_buffer, column) * factor))


@inlined
def normalize_head(row_buffer: Any, width: int, norm: Any, head_size: int, epsilon: Any) -> None:
    """Normalize one head in place."""
    squares = splat(np.float32(0.0))
    for column in range(0, width, LANES):
        squares = fma(load(row_buffer, column), load(row_buffer, column), squares)
    spread = np.float32(1.0) / np.sqrt(reduce_sum(squares) / np.float32(head_size) + epsilon)
    multiply_row(row_buffer, width, norm, 0, splat(spread))


@inlined
def apply_rope(row_buffer: Any, width: int, rotation: Any, cosines: Any, sines: Any) -> None:
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
def hadamard(row_buffer: Any, width: int, hadamard_order: int) -> None:
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
