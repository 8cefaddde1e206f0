"""The network on CPUs with AVX-512: steps of panel kernels that threads can share (`step`)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packhorse.engines.packed.architecture import Architecture
from packhorse.engines.packed.cache import KeyValueCache
from packhorse.engines.packed.layers import Linear, Norm, Weights
from packhorse.engines.packed.network import Network
from packhorse.engines.packed.scratch import (
    SAMPLED_AT_ONCE,
    Ints,
    Scratch,
    Step,
    write_logit_spans,
)
from packhorse.engines.packed.step import (
    ACTIVATION,
    ATTENDED,
    ATTENTION,
    COMBINE,
    EMBED,
    EXPERT_ACTIVATION,
    EXPERTS,
    GATHER,
    HEAD,
    HEADS,
    KEEP,
    MATMUL,
    NORM,
    ROUTE,
    head_logits,
    run_step,
)
from packhorse.engines.packed.threads import LINE

_PHASE_OF_KIND = {MATMUL: "matmul", EXPERTS: "matmul", ATTENTION: "attention", HEAD: "head"}


class PanelNetwork(Network):
    """The model with its weights in panels. See `Network`."""

    shares_steps = True

    def __init__(
        self, arch: Architecture, weights: Weights, cache: KeyValueCache, context: int
    ) -> None:
        super().__init__(arch, weights, cache, context)
        linears: list[list[int]] = []
        norms: list[list[int]] = []
        head_norms: list[list[int]] = []
        program = [(EMBED, 0, 0, 0, 0)]
        for number, layer in enumerate(weights.layers):
            first = len(linears)
            linears += map(_describe, (layer.qkv, layer.out, layer.up, layer.down))
            if layer.router is not None:
                linears.append(_describe(layer.router))
            first_norm = len(norms)
            norms += map(
                _addresses,
                (layer.attention_norm, layer.attention_post_norm, layer.mlp_norm,
                 layer.mlp_post_norm),
            )  # fmt: skip
            head_norms.append(
                [number for each in (layer.query_norm, layer.key_norm)
                 for number in (_address(each), each.size)]
            )  # fmt: skip
            is_last = number + 1 == len(weights.layers)
            program += [
                (MATMUL, number, first, 0, 0),
                (HEADS, number, first, 0, 0),
                *([(KEEP, number, 0, 0, 0)] if is_last else []),
                (ATTENTION, number, 0, 0, 0),
                (ATTENDED, number, 0, 0, 0),
                (MATMUL, number, first + 1, 0, 0),
                (NORM, number, first + 1, first_norm + 2, first_norm + 1),
            ]
            if layer.router is None:
                program += [
                    (MATMUL, number, first + 2, 0, 0),
                    (ACTIVATION, number, first + 2, 0, 0),
                    (MATMUL, number, first + 3, 0, 0),
                    (NORM, number, first + 3, len(norms), first_norm + 3),
                ]
            else:
                program += [
                    (MATMUL, number, first + 4, 0, 0),
                    (ROUTE, number, first + 4, 0, 0),
                    (GATHER, number, 0, 0, 0),
                    (EXPERTS, number, first + 2, 0, 0),
                    (EXPERT_ACTIVATION, number, first + 2, 0, 0),
                    (EXPERTS, number, first + 3, 0, 0),
                    (COMBINE, number, first + 3, len(norms), 0),
                ]
        norms.append(_addresses(weights.final_norm))
        self._first_head, start = len(linears), 0
        for part in weights.head:
            program.append((HEAD, 0, len(linears), start, 0))
            linears.append(_describe(part))
            start += linears[-1][-1]
        self._program = np.array(program, np.int64)
        self._linears, self._norms = np.array(linears, np.int64), np.array(norms, np.int64)
        self._head_norms, self._windows = np.array(head_norms, np.int64), np.array(arch.windows)

    def run(self, step: Step, block_tables: Ints, scratch: Scratch) -> None:
        scratch.start(step)
        self.open(step, scratch)
        self.join(step, block_tables, scratch, scratch)

    def open(self, step: Step, scratch: Scratch) -> None:
        """Prepare a step that threads then `join`."""
        if scratch.counters.size < len(self._program) * LINE:
            scratch.counters = np.zeros(len(self._program) * LINE, np.int64)
        scratch.counters[:] = 0
        scratch.helpers.clear()
        num_full = step.num_logits - step.num_best
        if num_full > SAMPLED_AT_ONCE:
            num_full = 0
        if num_full and not scratch.logits.size:
            scratch.logits = np.empty((SAMPLED_AT_ONCE, self.arch.vocabulary), np.float32)
        scratch.num_best, scratch.num_full = step.num_best, num_full
        write_logit_spans(step, scratch.last_spans)

    def join(self, step: Step, block_tables: Ints, shared: Scratch, own: Scratch) -> None:
        weights, cache = self.weights, self.cache
        started = time.perf_counter()
        own.best_logits[: step.num_best] = -np.inf
        own.best_ids[: step.num_best] = 0
        own.cycles[:] = 0
        try:
            run_step(
                shared.counters, self._program, self._linears, self._norms, self._head_norms,
                self._windows, self._rotations, step.tokens, step.positions, step.rotation_rows,
                step.table_rows, step.spans, shared.last_spans, step.logit_tokens, step.num_tokens,
                step.num_spans, step.num_logits, step.num_best, shared.num_full, block_tables,
                weights.embeddings, weights.position_embeddings, self._position_scales,
                self._cosines, self._sines, self._head_scales, cache.keys, cache.values,
                cache.key_scales, cache.value_scales, shared.residual, shared.last_residual,
                shared.queries, shared.attention_output, shared.accumulators, shared.activations,
                shared.scales, shared.logits, shared.expert_sums, shared.expert_activations,
                shared.expert_scales, shared.expert_weights, shared.expert_starts, shared.places,
                shared.owners, shared.pair_tokens, own.row_buffer, own.scores, own.value_sums,
                own.inverse_sums, own.head_sums, own.best_logits, own.best_ids, own.cycles,
                self._hidden, self.arch.inner, self.arch.head_size, self._is_gated,
                self._activation, self._is_layer_norm, self._epsilon, self._attention_cap,
                self._hadamard_order, self._experts, self._per_token, self._normalizes_experts,
            )  # fmt: skip
        except BaseException:
            shared.counters[:] = np.iinfo(np.int64).max // 2  # no thread waits for what is lost
            raise
        seconds, cycles = time.perf_counter() - started, own.cycles
        for kind, spent in enumerate(cycles):
            phase = _PHASE_OF_KIND.get(kind, "elementwise")
            own.seconds[phase] += seconds * float(spent) / max(1.0, float(cycles.sum()))

    def choose(self, count: int, scratch: Scratch) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        best, ids = scratch.best_logits[:count], scratch.best_ids[:count]
        for helper in scratch.helpers:
            found, at = helper.best_logits[:count], helper.best_ids[:count]
            is_better = (found > best) | ((found == best) & (at < ids))
            best[is_better], ids[is_better] = found[is_better], at[is_better]
        return best, ids

    def logits(self, rows: slice, scratch: Scratch) -> NDArray[np.float32]:
        if scratch.num_full and rows.start >= scratch.num_best:
            some = slice(rows.start - scratch.num_best, rows.stop - scratch.num_best)
            return self._bound(scratch.logits[some])
        logits = np.empty((rows.stop - rows.start, self.arch.vocabulary), np.float32)
        started = time.perf_counter()
        head_logits(
            self._linears, self._first_head, scratch.activations, scratch.scales,
            self._head_scales, rows.start, rows.stop, scratch.head_sums, logits,
        )  # fmt: skip
        scratch.seconds["head"] += time.perf_counter() - started
        return self._bound(logits)


def _describe(linear: Linear) -> list[int]:
    """Return the row of a layer in the table of `step`."""
    low = (linear.low_panels, linear.low_offsets)
    return [
        linear.panels.ctypes.data, linear.offsets.ctypes.data,
        *(each.ctypes.data if each.size else 0 for each in low),
        linear.scales.ctypes.data, linear.bias.ctypes.data, linear.inputs, linear.outputs,
    ]  # fmt: skip


def _addresses(norm: Norm) -> list[int]:
    return [_address(norm.weight), _address(norm.bias)]


def _address(array: NDArray[Any]) -> int:
    """Return the address of an array, 0 if it is empty."""
    return array.ctypes.data if array.size else 0
