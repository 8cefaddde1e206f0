"""Input and buffers of one step of the network."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packhorse.engines.packed.architecture import Architecture
from packhorse.engines.packed.int8_matmul import int8_matmul_is_exact
from packhorse.engines.packed.layers import HEAD_COLUMNS, Linear
from packhorse.engines.packed.panels import PANEL
from packhorse.engines.packed.step import NUM_KINDS
from packhorse.engines.packed.tiles import BLOCK, TILE_ROWS

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
SAMPLED_AT_ONCE = 16
"""Number of rows whose full logits are materialized at the same time."""
SPAN_TOKENS = 48
"""Maximum number of tokens per span, so that threads can share the attention of a long prompt."""
PHASES = ("matmul", "attention", "head", "elementwise")
COUNTS = ("steps", "tokens", "pairs", "logits")


@dataclass(slots=True)
class Step:
    """Input of one step; arrays are filled up to the counts.

    Attributes:
        tokens: [num_tokens] token ids.
        positions: [num_tokens] position of each token in its row.
        rotation_rows: [num_tokens] row of each token in a set of rotations, see
            `Network.rotation_offset`.
        table_rows: [num_tokens] row of `block_tables` of each token.
        spans: [num_spans, 5], see `attention.attend`; the last column repeats the first packed
            token.
        logit_tokens: [num_logits] packed tokens whose logits are needed.
        num_best: Only the most probable token is needed for the first `num_best` logit tokens.
    """

    tokens: Ints
    positions: Ints
    rotation_rows: Ints
    table_rows: Ints
    spans: Ints
    logit_tokens: Ints
    num_tokens: int = 0
    num_spans: int = 0
    num_logits: int = 0
    num_best: int = 0


def empty_step(tokens: int, rows: int) -> Step:
    """Return a step with room for `tokens` tokens of `rows` rows."""
    ids, positions, rotations, table_rows = np.empty((4, tokens), np.int32)
    spans = np.empty((rows + tokens // SPAN_TOKENS, 5), np.int32)
    return Step(ids, positions, rotations, table_rows, spans, np.empty(rows, np.int32))


class Scratch:
    """Scratch buffers of one thread for steps of up to `tokens` tokens, `rows` of them with logits.

    Attributes:
        seconds: Time spent in each of PHASES so far.
        counts: Steps, tokens, attended pairs of tokens (windows ignored) and computed logit rows so
            far.
        expert_sums: Buffers of layers with experts, see `expert_kernels.route`; likewise the six
            after it.
        counters: Progress of a step that threads share.
        logits: All logits of the `num_full` rows after the first `num_best` of the last step.
        helpers: Buffers of the other threads that computed the last step.
    """

    def __init__(
        self,
        arch: Architecture,
        tokens: int,
        rows: int,
        context: int,
        *,
        quantized: bool,
        panels: bool = False,
    ) -> None:
        accumulator_type: Any = np.int32 if quantized else np.float32
        activation_type: Any = np.float32
        if quantized:
            activation_type = np.uint8 if panels else np.int8
        attention_width = arch.heads * arch.padded_head
        widest = max(arch.qkv_width, arch.activation_width, arch.hidden, arch.router_width)
        columns = min(HEAD_COLUMNS, arch.vocabulary)
        self.head_rows = max(SAMPLED_AT_ONCE, min(rows, tokens * widest // columns))
        size = max(tokens * widest, self.head_rows * columns)
        self.accumulators = np.empty(size, accumulator_type)
        self.residual = np.empty((tokens, arch.hidden), np.float32)
        self.last_residual = np.empty((rows, arch.hidden), np.float32)
        self.queries = np.empty((arch.kv_heads, tokens, arch.group, arch.padded_head), np.float32)
        self.attention_output = np.empty((tokens, attention_width), np.float32)
        self.activations = np.empty(
            tokens * max(arch.hidden, attention_width, arch.inner), activation_type
        )
        self.scales = np.ones(tokens, np.float32)
        self.row_buffer = np.empty(
            max(arch.hidden, arch.inner, attention_width, arch.decoder.experts), np.float32
        )
        pairs = tokens * arch.decoder.experts_per_token
        self.expert_sums = np.empty(
            pairs * max(arch.activation_width, arch.hidden), accumulator_type
        )
        self.expert_activations = np.empty(pairs * max(arch.hidden, arch.inner), activation_type)
        self.expert_scales, self.expert_weights = np.ones((2, pairs), np.float32)
        self.expert_starts = np.zeros(arch.decoder.experts + 1, np.int32)
        self.places, self.owners, self.pair_tokens = np.empty((3, pairs), np.int32)
        self.scores = np.empty((TILE_ROWS, -(-context // BLOCK) * BLOCK), np.float32)
        self.value_sums = np.empty((TILE_ROWS, arch.padded_head), np.float32)
        self.inverse_sums = np.empty(TILE_ROWS, np.float32)
        self.last_spans = np.empty((rows, 5), np.int32)
        self.best_logits, self.best_ids = np.empty(rows, np.float32), np.empty(rows, np.int64)
        self.head_sums = np.empty(rows * PANEL if panels else 0, accumulator_type)
        self.cycles = np.zeros(NUM_KINDS, np.int64)
        self.logits: Floats = np.empty((0, arch.vocabulary), np.float32)
        self.num_best = self.num_full = 0
        self.counters, self.helpers = np.zeros(0, np.int64), list[Scratch]()
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.counts = dict.fromkeys(COUNTS, 0)
        second_size = (
            tokens * arch.qkv_width if quantized and not panels and arch.qkv_digits > 1 else 0
        )
        if quantized and not panels and not int8_matmul_is_exact():
            second_size = size
        self.second_accumulators = np.empty(second_size, accumulator_type)
        self._tensors = torch.from_numpy(self.accumulators), torch.from_numpy(self.activations)
        self._second_view = torch.from_numpy(self.second_accumulators)
        self._phase_start = 0.0

    def view_operands(self, rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        """Return `activations` as [rows, inputs] and `accumulators` as [rows, outputs]."""
        accumulators, activations = self._tensors
        return (
            activations[: rows * inputs].view(rows, inputs),
            accumulators[: rows * outputs].view(rows, outputs),
        )

    def view_second_accumulators(self, rows: int, linear: Linear) -> Tensor:
        """Return a second output buffer for `linear`; empty if it needs none."""
        is_one = linear.low_digit is None and linear.remainder is None
        outputs = 0 if is_one else linear.weight.shape[1]
        return self._second_view[: rows * outputs].view(rows, outputs)

    def count_bytes(self) -> int:
        arrays = [value for value in vars(self).values() if isinstance(value, np.ndarray)]
        return sum(array.nbytes for array in arrays)

    def start(self, step: Step) -> None:
        """Count a step and start its clock."""
        spans = step.spans[: step.num_spans].astype(np.int64)
        pairs = spans[:, 1] * spans[:, 2] + spans[:, 1] * (spans[:, 1] + 1) // 2
        found = (1, step.num_tokens, int(pairs.sum()), step.num_logits)
        for name, value in zip(COUNTS, found, strict=True):
            self.counts[name] += value
        self._phase_start = time.perf_counter()

    def record_phase(self, phase: str) -> None:
        """Add the time since the last call to `phase`."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._phase_start
        self._phase_start = now


def write_logit_spans(step: Step, spans: Ints) -> None:
    """Write the spans of the `logit_tokens` alone."""
    logit_tokens, count = step.logit_tokens[: step.num_logits], step.num_logits
    spans[:count, 0], spans[:count, 1] = logit_tokens, 1
    spans[:count, 2], spans[:count, 3] = step.positions[logit_tokens], step.table_rows[logit_tokens]
    spans[:count, 4] = np.arange(count)
