"""One forward pass over packed tokens, without padding or allocation.

Tokens of all rows form one matrix [tokens, hidden]; only attention knows which ones belong
together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from packhorse.decoders.rotations import position_scales, rotation_starts, rotation_tables
from packhorse.engines.packed.architecture import Architecture
from packhorse.engines.packed.attention import attend
from packhorse.engines.packed.cache import KeyValueCache
from packhorse.engines.packed.expert_kernels import combine_and_normalize, gather, route
from packhorse.engines.packed.kernels import (
    GELU_TANH,
    RELU2,
    SILU,
    activate,
    add_and_normalize,
    choose_best,
    embed,
    normalize,
    split_heads,
    write_activations,
    write_logits,
)
from packhorse.engines.packed.layers import Layer, Linear, Norm, Weights
from packhorse.engines.packed.scratch import Floats, Ints, Scratch, Step, write_logit_spans


class Network:
    """The model: weights, key/value cache and the forward pass.

    Args:
        arch: Sizes of the model.
        weights: Its weights.
        cache: Its key/value cache.
        context: Maximum number of positions per row.
    """

    shares_steps = False
    """Whether several threads can compute a step together (`join`)."""
    rotation_offset: int
    """What the long rotations of a row add to its positions in `Step.rotation_rows`."""

    def __init__(
        self, arch: Architecture, weights: Weights, cache: KeyValueCache, context: int
    ) -> None:
        self.arch, self.weights, self.cache = arch, weights, cache
        decoder = arch.decoder
        self._cosines, self._sines = rotation_tables(decoder, context, arch.padded_head // 2)
        self._rotations = rotation_starts(decoder, context)
        self._position_scales = position_scales(decoder, context)
        self.rotation_offset = context if decoder.trained_length else 0
        self._head_scales = weights.head_scales
        self._hidden, self._is_layer_norm = decoder.hidden, decoder.norm == "layer"
        self._epsilon = np.float32(decoder.epsilon)
        self._is_gated = decoder.is_gated
        self._activation = {"silu": SILU, "gelu_tanh": GELU_TANH, "relu2": RELU2}[
            decoder.activation
        ]
        self._experts, self._per_token = decoder.experts, decoder.experts_per_token
        self._normalizes_experts = decoder.normalizes_experts
        self._attention_cap = np.float32(decoder.attention_cap)
        self._logit_cap = np.float32(decoder.logit_cap)
        self._hadamard_order = arch.hadamard_order if cache.key_scales.size else 1

    def run(self, step: Step, block_tables: Ints, scratch: Scratch) -> None:
        """Compute a step; then `choose` or `logits` may be called for its `logit_tokens`.

        In the last layer, only tokens whose logits are needed are computed beyond their keys and
        values.

        Args:
            step: Tokens to compute.
            block_tables: [rows, blocks] cache blocks of each row.
            scratch: Buffers of the calling thread.
        """
        scratch.start(step)
        weights, count, residual = self.weights, step.num_tokens, scratch.residual
        embed(
            step.tokens,
            step.positions,
            0,
            count,
            weights.embeddings,
            weights.position_embeddings,
            residual,
        )
        first = weights.layers[0].attention_norm
        normalize(
            residual, 0, count, first.weight, first.bias, self._hidden, self._is_layer_norm,
            self._epsilon, scratch.row_buffer, scratch.activations, scratch.scales,
        )  # fmt: skip
        scratch.record_phase("elementwise")
        spans, num_spans = step.spans, step.num_spans
        for number, layer in enumerate(weights.layers):
            is_last = number + 1 == len(weights.layers)
            self._project(layer, number, step, block_tables, scratch)
            if is_last:
                residual, spans = self._keep_logit_tokens(step, scratch)
                count = num_spans = step.num_logits
            if count == 0:
                return
            self._attend(layer, number, spans, num_spans, block_tables, count, scratch)
            following = weights.final_norm if is_last else weights.layers[number + 1].attention_norm
            self._add_to_residual(
                layer.out, layer.attention_post_norm, layer.mlp_norm, residual, count, scratch
            )
            if layer.router is not None:
                self._add_experts(layer, layer.router, following, residual, count, scratch)
                continue
            self._activate(layer, count, scratch)
            self._add_to_residual(
                layer.down, layer.mlp_post_norm, following, residual, count, scratch
            )

    def open(self, step: Step, scratch: Scratch) -> None:
        """Prepare a step that threads then `join`. Only some networks can."""
        raise NotImplementedError

    def join(self, step: Step, block_tables: Ints, shared: Scratch, own: Scratch) -> None:
        """Compute the part of a step that other threads do not take.

        Args:
            step: The step.
            block_tables: [rows, blocks] cache blocks of each row.
            shared: Buffers of the thread that opened the step.
            own: Buffers of the calling thread.
        """
        raise NotImplementedError

    def choose(self, count: int, scratch: Scratch) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the largest logit and its token id for the first `count` rows with logits.

        Returns:
            Largest logits [count], -inf for rows with NaN, and token ids [count].
        """
        scratch.best_logits[:count], scratch.best_ids[:count] = -np.inf, 0
        for first in range(0, count, scratch.head_rows):
            rows = slice(first, min(count, first + scratch.head_rows))
            for start, width in self._head_parts(rows, scratch):
                choose_best(
                    scratch.accumulators, scratch.scales[rows], self._head_scales, start,
                    rows.stop - rows.start, width, width,
                    scratch.best_logits[rows], scratch.best_ids[rows],
                )  # fmt: skip
        scratch.record_phase("head")
        return scratch.best_logits[:count], scratch.best_ids[:count]

    def _bound(self, logits: Floats) -> Floats:
        """Return logits as the model bounds them: cap x tanh(logit / cap)."""
        if not self._logit_cap:
            return logits
        bounded: Floats = self._logit_cap * np.tanh(logits / self._logit_cap)
        return bounded

    def logits(self, rows: slice, scratch: Scratch) -> NDArray[np.float32]:
        """Return all logits [rows, vocabulary] of up to SAMPLED_AT_ONCE rows."""
        logits = np.empty((rows.stop - rows.start, self.arch.vocabulary), np.float32)
        for start, width in self._head_parts(rows, scratch):
            write_logits(
                scratch.accumulators, scratch.scales[rows], self._head_scales, start,
                0, rows.stop - rows.start, width, width, logits,
            )  # fmt: skip
        scratch.record_phase("head")
        return self._bound(logits)

    def _head_parts(self, rows: slice, scratch: Scratch) -> Iterator[tuple[int, int]]:
        """Compute logits of one vocabulary part at a time in `scratch.accumulators`.

        Yields:
            The first token id of the part and its size.
        """
        start = 0
        for part in self.weights.head:
            width = part.weight.shape[1]
            count = rows.stop - rows.start
            activations, _ = scratch.view_operands(rows.stop, self.arch.hidden, 0)
            _, accumulators = scratch.view_operands(count, 0, width)
            part.multiply(
                activations[rows], accumulators, scratch.view_second_accumulators(count, part)
            )
            yield start, width
            start += width

    def _project(
        self, layer: Layer, number: int, step: Step, block_tables: Ints, scratch: Scratch
    ) -> None:
        """Compute queries, keys and values of the normalized `scratch.activations`."""
        arch, cache = self.arch, self.cache
        self._multiply(layer.qkv, step.num_tokens, scratch)
        split_heads(
            scratch.accumulators, scratch.scales, layer.qkv.scales, layer.qkv.bias, 0,
            step.num_tokens, step.positions, step.rotation_rows, self._position_scales,
            block_tables, step.table_rows, number, self._rotations[number], self._cosines,
            self._sines, layer.query_norm, layer.key_norm, arch.head_size, self._epsilon,
            scratch.row_buffer, scratch.queries, cache.keys, cache.values, cache.key_scales,
            cache.value_scales,
        )  # fmt: skip
        scratch.record_phase("elementwise")

    def _attend(
        self, layer: Layer, number: int, spans: Ints, num_spans: int, block_tables: Ints,
        count: int, scratch: Scratch,
    ) -> None:  # fmt: skip
        cache = self.cache
        attend(
            spans, 0, num_spans * self.arch.kv_heads, self.arch.group, block_tables, number,
            self.arch.windows[number], self._attention_cap, scratch.queries, cache.keys,
            cache.values, cache.key_scales, cache.value_scales, scratch.scores, scratch.value_sums,
            scratch.inverse_sums, scratch.attention_output,
        )  # fmt: skip
        scratch.record_phase("attention")
        write_activations(
            scratch.attention_output,
            0,
            count,
            scratch.row_buffer,
            scratch.activations,
            scratch.scales,
        )
        scratch.record_phase("elementwise")

    def _add_to_residual(
        self,
        linear: Linear,
        post_norm: Norm,
        norm: Norm,
        residual: NDArray[np.float32],
        count: int,
        scratch: Scratch,
    ) -> None:
        """Add a projection to the residual stream and normalize it for the next one."""
        self._multiply(linear, count, scratch)
        add_and_normalize(
            scratch.accumulators, scratch.scales, linear.scales, linear.bias, residual, 0, count,
            post_norm.weight, norm.weight, norm.bias, self._hidden, self._is_layer_norm,
            self._epsilon, scratch.row_buffer, scratch.activations, scratch.scales,
        )  # fmt: skip
        scratch.record_phase("elementwise")

    def _activate(self, layer: Layer, count: int, scratch: Scratch) -> None:
        arch = self.arch
        self._multiply(layer.up, count, scratch)
        activate(
            scratch.accumulators, scratch.scales, layer.up.scales, layer.up.bias, 0, count,
            arch.inner, self._is_gated, self._activation, self._hadamard_order, scratch.row_buffer,
            scratch.activations, scratch.scales,
        )  # fmt: skip
        scratch.record_phase("elementwise")

    def _add_experts(
        self, layer: Layer, router: Linear, norm: Norm, residual: NDArray[np.float32], count: int,
        scratch: Scratch,
    ) -> None:  # fmt: skip
        """Add the experts of each token to the residual stream and normalize it."""
        arch, pairs = self.arch, count * self._per_token
        hidden, inner, width = arch.hidden, arch.inner, arch.activation_width
        sums, rows = map(torch.from_numpy, (scratch.expert_sums, scratch.expert_activations))
        self._multiply(router, count, scratch)
        route(
            scratch.accumulators, scratch.scales, router.scales, router.bias, count, router.outputs,
            self._experts, self._per_token, self._normalizes_experts, scratch.row_buffer,
            scratch.expert_weights, scratch.expert_starts, scratch.places, scratch.owners,
            scratch.pair_tokens,
        )  # fmt: skip
        gather(
            scratch.activations, scratch.scales, scratch.pair_tokens, 0, pairs, hidden,
            scratch.expert_activations, scratch.expert_scales,
        )  # fmt: skip
        starts = scratch.expert_starts.tolist()
        used = [
            (number, slice(starts[number], starts[number + 1]))
            for number in range(self._experts)
            if starts[number] < starts[number + 1]
        ]

        def multiply(linear: Linear, inputs: int, outputs: int) -> None:
            for number, some in used:
                part = linear.part(slice(number * outputs, (number + 1) * outputs))
                given = rows[: pairs * inputs].view(pairs, inputs)[some]
                product = sums[: pairs * outputs].view(pairs, outputs)[some]
                part.multiply(given, product, torch.empty_like(product))

        multiply(layer.up, hidden, width)
        for number, some in used:
            columns = slice(number * width, (number + 1) * width)
            activate(
                scratch.expert_sums, scratch.expert_scales, layer.up.scales[columns],
                layer.up.bias[columns], some.start, some.stop, inner, self._is_gated,
                self._activation, self._hadamard_order, scratch.row_buffer,
                scratch.expert_activations, scratch.expert_scales,
            )  # fmt: skip
        multiply(layer.down, inner, hidden)
        combine_and_normalize(
            scratch.expert_sums, scratch.expert_scales, layer.down.scales, layer.down.bias,
            scratch.expert_weights, scratch.places, scratch.owners, self._per_token, residual, 0,
            count, norm.weight, norm.bias, self._hidden, self._is_layer_norm, self._epsilon,
            scratch.row_buffer, scratch.activations, scratch.scales,
        )  # fmt: skip
        scratch.record_phase("matmul")

    def _multiply(self, linear: Linear, count: int, scratch: Scratch) -> None:
        linear.multiply(
            *scratch.view_operands(count, *linear.weight.shape),
            scratch.view_second_accumulators(count, linear),
        )
        scratch.record_phase("matmul")

    def _keep_logit_tokens(self, step: Step, scratch: Scratch) -> tuple[NDArray[np.float32], Ints]:
        """Return the residual stream and spans of the `logit_tokens` alone."""
        logit_tokens, count = step.logit_tokens[: step.num_logits], step.num_logits
        np.take(
            scratch.residual, logit_tokens, axis=0, out=scratch.last_residual[:count], mode="clip"
        )
        write_logit_spans(step, scratch.last_spans)
        return scratch.last_residual, scratch.last_spans
