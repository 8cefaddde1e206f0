"""One step of the network over packed tokens: no padding, no allocation.

Tokens of all rows are one matrix [tokens, hidden]; only attention knows which belong together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packhorse.engines.packed.architecture import LLAMA_LIKE, Architecture
from packhorse.engines.packed.attention import attend
from packhorse.engines.packed.cache import KeyValueCache
from packhorse.engines.packed.int8_products import products_are_exact
from packhorse.engines.packed.kernels import (
    activate,
    add_and_normalize,
    choose_best,
    embed,
    emit_rows,
    normalize,
    split_heads,
    write_logits,
)
from packhorse.engines.packed.tiles import BLOCK, TILE_ROWS
from packhorse.engines.packed.weights import HEAD_COLUMNS, Layer, Linear, Norm, Weights

Ints = NDArray[np.int32]
SAMPLED_AT_ONCE = 16
"""Rows whose logits are all written out at the same time."""
PHASES = ("products", "attention", "head", "between")
COUNTS = ("steps", "tokens", "pairs", "logits")


@dataclass(slots=True)
class Step:
    """What one step computes; arrays are filled up to the counts.

    tokens, positions, table_of: [count], of every packed token; table_of is the row of `tables`
    with its blocks. spans: [span_count, 5], see `attention.attend`, whose last column is the first
    packed token again. ends: [end_count] packed tokens whose logits are wanted.
    """

    tokens: Ints
    positions: Ints
    table_of: Ints
    spans: Ints
    ends: Ints
    count: int = 0
    span_count: int = 0
    end_count: int = 0


def empty_step(tokens: int, rows: int) -> Step:
    """A step with room for `tokens` tokens of `rows` rows."""
    ids, positions, table_of = np.empty((3, tokens), np.int32)
    return Step(ids, positions, table_of, np.empty((rows, 5), np.int32), np.empty(rows, np.int32))


class Scratch:
    """Memory of one thread for steps of up to `tokens` tokens, `rows` of which want logits.

    seconds: spent in each of PHASES so far. counts: steps, tokens, pairs of a token and one it
    attends to (windows aside), and rows whose logits were wanted, so far.
    """

    def __init__(
        self, built: Architecture, tokens: int, rows: int, context: int, *, quantized: bool
    ) -> None:
        sums, taken = (np.int32, np.int8) if quantized else (np.float32, np.float32)
        attended = built.heads * built.padded_head
        widest = max(built.qkv_width, built.activation_width, built.hidden)
        columns = min(HEAD_COLUMNS, built.vocabulary)
        self.rows_at_once = max(SAMPLED_AT_ONCE, min(rows, tokens * widest // columns))
        size = max(tokens * widest, self.rows_at_once * columns)
        self.product = np.empty(size, sums)
        self.stream = np.empty((tokens, built.hidden), np.float32)
        self.last_stream = np.empty((rows, built.hidden), np.float32)
        self.queries = np.empty(
            (built.kv_heads, tokens, built.group, built.padded_head), np.float32
        )
        self.attended = np.empty((tokens, attended), np.float32)
        self.taken = np.empty(tokens * max(built.hidden, attended, built.inner), taken)
        self.scales = np.ones(tokens, np.float32)
        self.held = np.empty(max(built.hidden, built.inner, attended), np.float32)
        self.scores = np.empty((TILE_ROWS, -(-context // BLOCK) * BLOCK), np.float32)
        self.sums = np.empty((TILE_ROWS, built.padded_head), np.float32)
        self.shares = np.empty(TILE_ROWS, np.float32)
        self.last_spans = np.empty((rows, 5), np.int32)
        self.best, self.best_at = np.empty(rows, np.float32), np.empty(rows, np.int64)
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.counts = dict.fromkeys(COUNTS, 0)
        second = tokens * built.qkv_width if quantized and built.qkv_digits > 1 else 0
        if quantized and not products_are_exact():
            second = size
        self.second = np.empty(second, sums)
        self._tensors = torch.from_numpy(self.product), torch.from_numpy(self.taken)
        self._second = torch.from_numpy(self.second)
        self._marked = 0.0

    def views(self, rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        """`taken` as [rows, inputs] and `product` as [rows, outputs], for a product."""
        product, taken = self._tensors
        return (
            taken[: rows * inputs].view(rows, inputs),
            product[: rows * outputs].view(rows, outputs),
        )

    def spare(self, rows: int, linear: Linear) -> Tensor:
        """Room for a second product of `linear`, where it has one."""
        is_one = linear.finer is None and linear.rest is None
        outputs = 0 if is_one else linear.weight.shape[1]
        return self._second[: rows * outputs].view(rows, outputs)

    def bytes(self) -> int:
        arrays = [value for value in vars(self).values() if isinstance(value, np.ndarray)]
        return sum(array.nbytes for array in arrays)

    def start(self, step: Step) -> None:
        """Counts a step that begins, and starts the clock."""
        spans = step.spans[: step.span_count].astype(np.int64)
        pairs = spans[:, 1] * spans[:, 2] + spans[:, 1] * (spans[:, 1] + 1) // 2
        found = (1, step.count, int(pairs.sum()), step.end_count)
        for name, value in zip(COUNTS, found, strict=True):
            self.counts[name] += value
        self._marked = time.perf_counter()

    def clock(self, phase: str) -> None:
        """Counts the time since the last call for `phase`."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._marked
        self._marked = now


class Network:
    """The weights, the cache, and the way through them.

    context: positions of one row at most.
    """

    def __init__(
        self, built: Architecture, weights: Weights, cache: KeyValueCache, context: int
    ) -> None:
        self.built, self.weights, self.cache = built, weights, cache
        self._cosines, self._sines = _rotations(built, context)
        self._head_scales = weights.head_scales
        self._centers = built.family not in LLAMA_LIKE
        self._epsilon = np.float32(built.epsilon)
        self._turned = built.hadamard if cache.key_scales.size else 1

    def run(self, step: Step, tables: Ints, scratch: Scratch) -> None:
        """Computes a step; afterwards `choose` or `logits` may be called for its `ends`.

        tables: [rows, blocks] blocks of each row's cache. In the last layer only the tokens that
        want logits go on past their keys and values.
        """
        scratch.start(step)
        weights, count, stream = self.weights, step.count, scratch.stream
        embed(step.tokens, step.positions, count, weights.embeddings, weights.learned, stream)
        first = weights.layers[0].attention_norm
        normalize(
            stream, count, first.weight, first.bias, self._centers, self._epsilon,
            scratch.held, scratch.taken, scratch.scales,
        )  # fmt: skip
        scratch.clock("between")
        spans, span_count = step.spans, step.span_count
        for number, layer in enumerate(weights.layers):
            is_last = number + 1 == len(weights.layers)
            self._project(layer, number, step, tables, scratch)
            if is_last:
                stream, spans = self._keep_ends(step, scratch)
                count = span_count = step.end_count
            if count == 0:
                return
            self._attend(layer, number, spans, span_count, tables, count, scratch)
            following = weights.final_norm if is_last else weights.layers[number + 1].attention_norm
            self._add(layer.out, layer.mlp_norm, stream, count, scratch)
            self._activate(layer, count, scratch)
            self._add(layer.down, following, stream, count, scratch)

    def choose(self, count: int, scratch: Scratch) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The largest logit of each of the first `count` of the step's `ends`, and its token; -inf
        where there is no number."""
        scratch.best[:count], scratch.best_at[:count] = -np.inf, 0
        for first in range(0, count, scratch.rows_at_once):
            rows = slice(first, min(count, first + scratch.rows_at_once))
            for start, width in self._head_parts(rows, scratch):
                choose_best(
                    scratch.product, scratch.scales[rows], self._head_scales, start,
                    rows.stop - rows.start, width, scratch.best[rows], scratch.best_at[rows],
                )  # fmt: skip
        scratch.clock("head")
        return scratch.best[:count], scratch.best_at[:count]

    def logits(self, rows: slice, scratch: Scratch) -> NDArray[np.float32]:
        """All logits [rows, vocabulary] of some of the step's `ends`, SAMPLED_AT_ONCE at most."""
        logits = np.empty((rows.stop - rows.start, self.built.vocabulary), np.float32)
        for start, width in self._head_parts(rows, scratch):
            write_logits(
                scratch.product, scratch.scales[rows], self._head_scales, start,
                rows.stop - rows.start, width, logits,
            )  # fmt: skip
        scratch.clock("head")
        return logits

    def _head_parts(self, rows: slice, scratch: Scratch) -> Iterator[tuple[int, int]]:
        """Logits of a part of the vocabulary in `scratch.product`: its first token, its tokens."""
        start = 0
        for part in self.weights.head:
            width = part.weight.shape[1]
            count = rows.stop - rows.start
            taken, _ = scratch.views(rows.stop, self.built.hidden, 0)
            _, product = scratch.views(count, 0, width)
            part.multiply(taken[rows], product, scratch.spare(count, part))
            yield start, width
            start += width

    def _project(
        self, layer: Layer, number: int, step: Step, tables: Ints, scratch: Scratch
    ) -> None:
        """Queries, keys and values of the normed tokens in `scratch.taken`."""
        built, cache = self.built, self.cache
        self._multiply(layer.qkv, step.count, scratch)
        split_heads(
            scratch.product, scratch.scales, layer.qkv.scales, layer.qkv.bias, step.count,
            step.positions, tables, step.table_of, number, self._cosines, self._sines,
            layer.query_norm, layer.key_norm, built.head_size, self._epsilon, scratch.held,
            scratch.queries, cache.keys, cache.values, cache.key_scales, cache.value_scales,
        )  # fmt: skip
        scratch.clock("between")

    def _attend(
        self, layer: Layer, number: int, spans: Ints, span_count: int, tables: Ints, count: int,
        scratch: Scratch,
    ) -> None:  # fmt: skip
        cache = self.cache
        attend(
            spans, span_count, self.built.group, tables, number, self.built.windows[number],
            scratch.queries, cache.keys, cache.values, cache.key_scales, cache.value_scales,
            scratch.scores, scratch.sums, scratch.shares, scratch.attended,
        )  # fmt: skip
        scratch.clock("attention")
        emit_rows(scratch.attended, count, scratch.held, scratch.taken, scratch.scales)
        scratch.clock("between")

    def _add(
        self, linear: Linear, norm: Norm, stream: NDArray[np.float32], count: int, scratch: Scratch
    ) -> None:
        """Adds a product to the residual stream and norms it for the next."""
        self._multiply(linear, count, scratch)
        add_and_normalize(
            scratch.product, scratch.scales, linear.scales, linear.bias, stream, count,
            norm.weight, norm.bias, self._centers, self._epsilon,
            scratch.held, scratch.taken, scratch.scales,
        )  # fmt: skip
        scratch.clock("between")

    def _activate(self, layer: Layer, count: int, scratch: Scratch) -> None:
        built = self.built
        self._multiply(layer.up, count, scratch)
        activate(
            scratch.product, scratch.scales, layer.up.scales, layer.up.bias, count, built.inner,
            built.is_gated, self._turned, scratch.held, scratch.taken, scratch.scales,
        )  # fmt: skip
        scratch.clock("between")

    def _multiply(self, linear: Linear, count: int, scratch: Scratch) -> None:
        linear.multiply(*scratch.views(count, *linear.weight.shape), scratch.spare(count, linear))
        scratch.clock("products")

    def _keep_ends(self, step: Step, scratch: Scratch) -> tuple[NDArray[np.float32], Ints]:
        """The residual stream and the spans of the step's `ends` alone."""
        ends, count = step.ends[: step.end_count], step.end_count
        np.take(scratch.stream, ends, axis=0, out=scratch.last_stream[:count], mode="clip")
        spans = scratch.last_spans
        spans[:count, 0], spans[:count, 1] = ends, 1
        spans[:count, 2], spans[:count, 3] = step.positions[ends], step.table_of[ends]
        spans[:count, 4] = np.arange(count)
        return scratch.last_stream, spans


def _rotations(built: Architecture, context: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cosines and sines [context, padded head / 2] as transformers computes them; empty where
    positions are learned."""
    if built.positions:
        return np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotary = LlamaRotaryEmbedding(built.config)
    half, padding = built.head_size // 2, built.padded_head // 2 - built.head_size // 2
    found = rotary(torch.zeros(1), torch.arange(context)[None])
    cosines, sines = (
        np.pad(part[0, :, :half].numpy(), ((0, 0), (0, padding))).astype(np.float32, order="C")
        for part in found
    )
    return cosines, sines
