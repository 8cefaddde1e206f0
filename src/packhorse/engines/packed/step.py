"""One step of the network as a program of phases, computed by one thread or by several together.

    EMBED, then per layer QKV, HEADS, ATTENTION, ATTENDED, OUT, NORM, UP, ACTIVATION, DOWN, NORM
    and, for rows that take their most probable token, HEAD

In the last layer KEEP follows HEADS: from there on only tokens whose logits are needed are
computed.
Matrix multiplications are divided by panels of 64 output channels, everything else by tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from packhorse.engines.packed.attention import attend
from packhorse.engines.packed.compiling import inlined, kernel
from packhorse.engines.packed.expert_kernels import combine_and_normalize, gather, route
from packhorse.engines.packed.kernels import (
    activate,
    add_and_normalize,
    choose_best,
    embed,
    normalize,
    split_heads,
    write_activations,
    write_logits,
)
from packhorse.engines.packed.layers import LOW_DIGIT_STEPS
from packhorse.engines.packed.panel_kernels import multiply_panel
from packhorse.engines.packed.panels import PANEL
from packhorse.engines.packed.threads import cycles, finish_chunk, take_chunk, wait_for_chunks
from packhorse.engines.packed.vectors import LANES, load, store

EMBED, MATMUL, HEADS, KEEP, ATTENTION, ATTENDED, NORM, ACTIVATION, HEAD = range(9)
"""Kinds of phases."""
ROUTE, GATHER, EXPERTS, EXPERT_ACTIVATION, COMBINE = range(9, 14)
"""Kinds of phases of layers with experts, whose rows are pairs of a token and an expert."""
NUM_KINDS = 14
KIND, LAYER, LINEAR, FOLLOWING, POST = range(5)
"""Columns of a program. LINEAR is a row of the table of linear layers, FOLLOWING one of the norms,
or for HEAD the first token id; POST is the norm of what NORM adds."""
(PANELS, STARTS, LOW_PANELS, LOW_STARTS, SCALES, BIAS, INPUTS, OUTPUTS) = range(8)
"""Columns of the table of linear layers: six addresses and two sizes."""
TOKENS_PER_CHUNK = 16
ROWS_PER_SPAN_CHUNK = 4


@intrinsic
def _address(typing: Any, number: Any) -> Any:
    def build(context: Any, builder: Any, _: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), build


@inlined
def _floats(address: int, count: int) -> Any:
    return carray(_address(address), (count,), np.float32)


@kernel
def _multiply(
    sums: Any, at: Any, stride: Any, linears: Any, linear: int, panel: int, activations: Any,
    rows: int, zeros: Any,
) -> None:  # fmt: skip
    """Multiply rows of activations with one panel of a linear layer."""
    inputs = linears[linear, INPUTS]
    size = inputs * activations.itemsize * PANEL
    vectors = min(PANEL, stride - at) // LANES
    weights, starts, factor = linears[linear, PANELS], linears[linear, STARTS], np.int64(0)
    begin, zeros_address = np.int64(0), zeros.ctypes.data
    for _digit in range(2 if linears[linear, LOW_PANELS] else 1):
        multiply_panel(
            sums, at, stride, vectors, activations, begin, inputs, rows, weights + panel * size,
            starts + panel * PANEL * 4, factor, zeros_address,
        )  # fmt: skip
        weights, starts = linears[linear, LOW_PANELS], linears[linear, LOW_STARTS]
        factor = np.int64(LOW_DIGIT_STEPS)


@kernel
def _multiply_expert(
    sums: Any, linears: Any, linear: int, expert: int, panel: int, panels: int, activations: Any,
    first: Any, rows: int, zeros: Any,
) -> None:  # fmt: skip
    """Multiply the rows of an expert, from `first` on, with one of its panels."""
    inputs, stride = linears[linear, INPUTS], panels * PANEL
    place = expert * panels + panel
    weights = linears[linear, PANELS] + place * inputs * activations.itemsize * PANEL
    multiply_panel(
        sums, np.int64(first * stride + panel * PANEL), np.int64(stride), PANEL // LANES,
        activations, np.int64(first * inputs), inputs, rows, weights,
        linears[linear, STARTS] + place * PANEL * 4, np.int64(0), zeros.ctypes.data,
    )  # fmt: skip


@kernel
def run_step(
    counters: Any, program: Any, linears: Any, norms: Any, head_norms: Any, windows: Any,
    rotations: Any, tokens: Any, positions: Any, rotation_rows: Any, table_rows: Any, spans: Any,
    last_spans: Any, logit_tokens: Any, num_tokens: int, num_spans: int, num_logits: int,
    num_best: int, num_full: int, block_tables: Any, embeddings: Any, position_embeddings: Any,
    position_scales: Any, cosines: Any, sines: Any, head_scales: Any,
    keys: Any, values: Any, key_scales: Any, value_scales: Any,
    residual: Any, last_residual: Any, queries: Any, attention_output: Any,
    accumulators: Any, activations: Any, scales: Any, logits: Any,
    expert_sums: Any, expert_activations: Any, expert_scales: Any, expert_weights: Any,
    expert_starts: Any, places: Any, owners: Any, pair_tokens: Any,
    row_buffer: Any, scores: Any, value_sums: Any, inverse_sums: Any, head_sums: Any,
    best_logits: Any, best_ids: Any, spent: Any,
    hidden_size: int, inner: int, head_size: int, is_gated: bool, activation: int,
    is_layer_norm: bool, epsilon: Any, attention_cap: Any, hadamard_order: int,
    experts: int, per_token: int, normalizes_experts: bool,
) -> None:  # fmt: skip
    """Compute the chunks of a step that other threads do not take.

    All threads pass the same arguments but for the last two lines of arrays, which are their own:
    `row_buffer` to `spent`. The step is complete when any of them returns.

    Args:
        counters: [phases x LINE] zeros, see `threads`.
        program: [phases, 5], see KIND.
        linears: [linear layers, 8], see PANELS.
        norms: [norms, 2] addresses of weights and biases; 0 for no norm.
        head_norms: [layers, 4] address and width of query and key norm; 0 without.
        windows: [layers] see `attention.attend`.
        rotations: [layers] `first_rotation` of `kernels.split_heads`.
        last_spans: `spans` of the logit tokens alone.
        num_best: The first `num_best` logit tokens get their most probable token.
        num_full: All logits of the next `num_full` logit tokens are written to `logits`.
        logits: [num_full, vocabulary] output.
        head_sums: [rows x PANEL] scratch.
        best_logits: [rows] -inf; receives the largest logit that this thread found.
        best_ids: [rows] receives its token id.
        spent: [kinds of phases] cycles spent by this thread; added to.
        hidden_size: Width of the residual stream without padding.
        inner: Width of the MLP's activation.
        experts: Number of experts, 0 without; the arguments of experts are those of
            `expert_kernels.route`.

    The other arrays are described in `scratch.Scratch`, `scratch.Step` and `attention.attend`.
    """
    hidden = residual.shape[1]
    kv_heads, group = queries.shape[0], queries.shape[2]
    zeros = np.zeros(PANEL, np.int32)
    first_column, head_stride = np.int64(0), np.int64(PANEL)
    rows, some_spans, num = num_tokens, spans, num_spans
    stream = residual
    for phase in range(len(program)):
        kind, layer = program[phase, KIND], program[phase, LAYER]
        linear, following = program[phase, LINEAR], program[phase, FOLLOWING]
        begun = cycles()
        if kind == MATMUL:
            outputs = linears[linear, OUTPUTS]
            chunks = (outputs + PANEL - 1) // PANEL
        elif kind == HEAD:
            outputs = linears[linear, OUTPUTS]
            chunks = (outputs + PANEL - 1) // PANEL if num_best + num_full else 0
        elif kind == ATTENTION:
            heads_at_once = 1 if num < ROWS_PER_SPAN_CHUNK else kv_heads
            chunks = num * kv_heads // heads_at_once
        elif kind in (KEEP, ROUTE):
            chunks = 1
        elif kind == EXPERTS:
            panels = linears[linear, OUTPUTS] // experts // PANEL
            chunks = experts * panels
        elif kind in (GATHER, EXPERT_ACTIVATION):
            at_once = TOKENS_PER_CHUNK
            chunks = (rows * per_token + at_once - 1) // at_once
        else:
            at_once = min(TOKENS_PER_CHUNK, (rows + 3) // 4)
            chunks = (rows + at_once - 1) // at_once
        while True:
            chunk = take_chunk(counters, phase)
            if chunk >= chunks:
                break
            if kind == MATMUL:
                _multiply(
                    accumulators, chunk * PANEL, outputs, linears, linear, chunk, activations, rows,
                    zeros,
                )  # fmt: skip
            elif kind == ATTENTION:
                attend(
                    some_spans, chunk * heads_at_once, (chunk + 1) * heads_at_once, group,
                    block_tables, layer, windows[layer], attention_cap, queries, keys, values,
                    key_scales, value_scales, scores, value_sums, inverse_sums, attention_output,
                )  # fmt: skip
            elif kind == HEAD:
                _multiply(
                    head_sums, first_column, head_stride, linears, linear, chunk, activations,
                    num_best + num_full, zeros,
                )  # fmt: skip
                columns, start = min(PANEL, outputs - chunk * PANEL), following + chunk * PANEL
                choose_best(
                    head_sums, scales, head_scales, start, num_best, columns, PANEL, best_logits,
                    best_ids,
                )  # fmt: skip
                write_logits(
                    head_sums, scales, head_scales, start, num_best, num_full, columns, PANEL,
                    logits,
                )  # fmt: skip
            elif kind == ROUTE:
                route(
                    accumulators, scales, _floats(linears[linear, SCALES], 0),
                    _floats(linears[linear, BIAS], 0), rows, linears[linear, OUTPUTS], experts,
                    per_token, normalizes_experts, row_buffer, expert_weights, expert_starts,
                    places, owners, pair_tokens,
                )  # fmt: skip
            elif kind == EXPERTS:
                expert, panel = chunk // panels, chunk % panels
                first_pair = np.int64(expert_starts[expert])
                num_pairs = expert_starts[expert + 1] - first_pair
                if num_pairs > 0:
                    _multiply_expert(
                        expert_sums, linears, linear, expert, panel, panels, expert_activations,
                        first_pair, num_pairs, zeros,
                    )  # fmt: skip
            elif kind == GATHER:
                gather(
                    activations, scales, pair_tokens, chunk * at_once,
                    min(rows * per_token, (chunk + 1) * at_once), hidden, expert_activations,
                    expert_scales,
                )  # fmt: skip
            elif kind == EXPERT_ACTIVATION:
                size = linears[linear, OUTPUTS] // experts * 4
                for pair in range(chunk * at_once, min(rows * per_token, (chunk + 1) * at_once)):
                    begin = owners[pair] * size
                    activate(
                        expert_sums, expert_scales, _floats(linears[linear, SCALES] + begin, 0),
                        _floats(linears[linear, BIAS] + begin, 0), pair, pair + 1, inner, is_gated,
                        activation, hadamard_order, row_buffer, expert_activations, expert_scales,
                    )  # fmt: skip
            elif kind == KEEP:
                for row in range(num_logits):
                    to, start = row * hidden, np.int64(logit_tokens[row]) * hidden
                    for column in range(0, hidden, LANES):
                        store(last_residual, to + column, load(residual, start + column))
            else:
                first, last = chunk * at_once, min(rows, (chunk + 1) * at_once)
                if kind == HEADS:
                    split_heads(
                        accumulators, scales, _floats(linears[linear, SCALES], 0),
                        _floats(linears[linear, BIAS], 0), first, last, positions, rotation_rows,
                        position_scales, block_tables, table_rows, layer, rotations[layer],
                        cosines, sines, _floats(head_norms[layer, 0], head_norms[layer, 1]),
                        _floats(head_norms[layer, 2], head_norms[layer, 3]), head_size, epsilon,
                        row_buffer, queries, keys, values, key_scales, value_scales,
                    )  # fmt: skip
                elif kind == ATTENDED:
                    write_activations(
                        attention_output, first, last, row_buffer, activations, scales
                    )
                elif kind == ACTIVATION:
                    activate(
                        accumulators, scales, _floats(linears[linear, SCALES], 0),
                        _floats(linears[linear, BIAS], 0), first, last, inner, is_gated,
                        activation, hadamard_order, row_buffer, activations, scales,
                    )  # fmt: skip
                else:
                    norm_width = hidden if norms[following, 0] else 0
                    weight = _floats(norms[following, 0], norm_width)
                    bias = _floats(norms[following, 1], norm_width)
                    if kind == COMBINE:
                        combine_and_normalize(
                            expert_sums, expert_scales, _floats(linears[linear, SCALES], 0),
                            _floats(linears[linear, BIAS], 0), expert_weights, places, owners,
                            per_token, stream, first, last, weight, bias, hidden_size,
                            is_layer_norm, epsilon, row_buffer, activations, scales,
                        )  # fmt: skip
                    elif kind == NORM:
                        post = norms[program[phase, POST], 0]
                        add_and_normalize(
                            accumulators, scales, _floats(linears[linear, SCALES], 0),
                            _floats(linears[linear, BIAS], 0), stream, first, last,
                            _floats(post, hidden if post else 0), weight, bias, hidden_size,
                            is_layer_norm, epsilon, row_buffer, activations, scales,
                        )  # fmt: skip
                    else:
                        embed(
                            tokens, positions, first, last, embeddings, position_embeddings, stream
                        )
                        normalize(
                            stream, first, last, weight, bias, hidden_size, is_layer_norm, epsilon,
                            row_buffer, activations, scales,
                        )  # fmt: skip
            finish_chunk(counters, phase)
        wait_for_chunks(counters, phase, chunks)
        if kind == KEEP:
            rows, stream, some_spans, num = num_logits, last_residual, last_spans, num_logits
        spent[kind] += cycles() - begun
        if rows == 0:
            break


@kernel
def head_logits(
    linears: Any, first_linear: int, activations: Any, scales: Any, head_scales: Any, first: int,
    last: int, head_sums: Any, logits: Any,
) -> None:  # fmt: skip
    """Set logits [last - first, vocabulary] to those of rows `first` to `last`."""
    hidden = linears[first_linear, INPUTS]
    zeros, start = np.zeros(PANEL, np.int32), 0
    first_column, head_stride = np.int64(0), np.int64(PANEL)
    for linear in range(first_linear, len(linears)):
        outputs = linears[linear, OUTPUTS]
        for panel in range((outputs + PANEL - 1) // PANEL):
            _multiply(
                head_sums, first_column, head_stride, linears, linear, panel,
                activations[first * hidden :], last - first, zeros,
            )  # fmt: skip
            write_logits(
                head_sums, scales[first:], head_scales, start + panel * PANEL, 0, last - first,
                min(PANEL, outputs - panel * PANEL), PANEL, logits,
            )  # fmt: skip
        start += outputs
