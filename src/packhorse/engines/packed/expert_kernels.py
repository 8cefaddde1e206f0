"""Kernels of layers with experts: a pair is a token and one of its experts."""

from __future__ import annotations

from typing import Any

import numpy as np

from packhorse.engines.packed.compiling import kernel
from packhorse.engines.packed.row_kernels import dequantize, norm_row, write_row
from packhorse.engines.packed.vectors import LANES, fma, load, splat, store


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
                numbers = dequantize(
                    accumulators, place * width + column, scale, column_scales, product_bias,
                    expert + column,
                )  # fmt: skip
                total = fma(numbers, share, load(residual, offset + column))
                store(residual, offset + column, total)
        norm_row(residual, row, weight, bias, hidden, is_layer_norm, epsilon, row_buffer)
        write_row(row_buffer, row, width, output, scales)
