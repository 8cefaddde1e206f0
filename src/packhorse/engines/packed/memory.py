"""Peak memory of the engine, computed from sizes before anything runs.

    weights + key/value cache + per thread: scratch buffers and the logits it samples from

Python, libraries, the tokenizer and queued rows come on top.
"""

from __future__ import annotations

from collections.abc import Sequence

from packhorse.decoders.rotations import rotation_sets
from packhorse.engines.packed.architecture import Architecture
from packhorse.engines.packed.int8_matmul import int8_matmul_is_exact
from packhorse.engines.packed.layers import ROUTER_DIGITS
from packhorse.engines.packed.panels import PANEL, has_panel_kernels
from packhorse.engines.packed.scratch import SAMPLED_AT_ONCE, Scratch
from packhorse.engines.packed.tiles import TILE_ROWS

LOGIT_BYTES = 80
"""Memory per sampled logit (bytes).

Two float32 copies, five float64 steps of the sampling rule, and the sort of one row.
"""


def weight_bytes(arch: Architecture, *, quantized: bool, panels: bool | None = None) -> int:
    """Return the memory of the weights with their scales and biases (bytes).

    In int8, embeddings take 16 bits. In float32 the head may share the embeddings.

    Args:
        arch: Sizes of the model.
        quantized: Whether weights are int8.
        panels: Whether weights are in panels; None if they are on this CPU. Otherwise each int8
            weight takes two bytes if exact multiplication needs two parts.
    """
    in_panels = has_panel_kernels() if panels is None else panels
    parts = 1 if in_panels or not quantized or int8_matmul_is_exact() else 2
    number = 1 if quantized else 4

    def linear(outputs: int, inputs: int, digits: int = 1, *, is_shared: bool = False) -> int:
        padded = -(-outputs // PANEL) * PANEL
        weights = (padded if in_panels else outputs) * inputs * number * (parts + digits - 1)
        sums = 4 * padded * digits if in_panels else 0
        return (0 if is_shared else weights) + 8 * (padded if quantized else outputs) + sums

    attention_width = arch.heads * arch.padded_head
    layer = (
        linear(arch.qkv_width, arch.hidden, arch.qkv_digits if quantized else 1)
        + linear(arch.hidden, attention_width)
        + linear(arch.mlps * arch.activation_width, arch.hidden)
        + linear(arch.mlps * arch.hidden, arch.inner)
        + linear(arch.router_width, arch.hidden, ROUTER_DIGITS if quantized else 1)
        + 4 * (_norms_per_layer(arch) * 2 * arch.hidden + sum(arch.head_norm_widths))
    )
    is_shared = arch.ties_head and not quantized
    rows = -(-arch.vocabulary // PANEL) * PANEL if is_shared and in_panels else arch.vocabulary
    embeddings = (2 if quantized else 4) * rows * arch.hidden
    head = linear(arch.vocabulary, arch.hidden, is_shared=is_shared)
    return arch.layers * layer + embeddings + head + 4 * (arch.positions + 2) * arch.hidden


def _norms_per_layer(arch: Architecture) -> int:
    names = arch.decoder.names
    every = (
        names.attention_norm, names.attention_post_norm, names.mlp_norm, names.mlp_post_norm,
    )  # fmt: skip
    return sum(map(bool, every))


def bytes_per_position(arch: Architecture, threads: int) -> int:
    """Return the memory that grows with the longest row, without keys and values (bytes).

    It consists of RoPE tables, of which three copies exist while they are computed, and the
    attention scores of one tile per thread.
    """
    rotations = 4 * arch.padded_head * len(rotation_sets(arch.decoder))
    return 3 * rotations + threads * TILE_ROWS * 4


def working_bytes(arch: Architecture, scratches: Sequence[Scratch], context: int) -> int:
    """Return the memory that steps need in addition (bytes).

    Args:
        arch: Sizes of the model.
        scratches: Scratch buffers of all threads.
        context: Positions in the RoPE tables.
    """
    sampled = SAMPLED_AT_ONCE * arch.vocabulary * LOGIT_BYTES
    rotations = 4 * context * arch.padded_head * len(rotation_sets(arch.decoder))
    return sum(each.count_bytes() + sampled for each in scratches) + rotations
