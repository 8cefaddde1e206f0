"""Peak memory of the engine, computed from sizes before anything runs.

    weights + key/value cache + per thread: scratch buffers and the logits it samples from

Python, libraries, the tokenizer and queued rows come on top.
"""

from __future__ import annotations

from collections.abc import Sequence

from packhorse.engines.packed.architecture import Architecture
from packhorse.engines.packed.int8_matmul import int8_matmul_is_exact
from packhorse.engines.packed.network import SAMPLED_AT_ONCE, Scratch
from packhorse.engines.packed.tiles import TILE_ROWS

_CHANNEL_BYTES = 8
"""Scale and bias of one output channel."""
LOGIT_BYTES = 80
"""Memory per sampled logit (bytes).

Two float32 copies, five float64 steps of the sampling rule, and the sort of one row.
"""


def weight_bytes(arch: Architecture, *, quantized: bool) -> int:
    """Return the memory of the weights with their scales and biases (bytes).

    In int8, embeddings take 16 bits and each weight takes two bytes if exact multiplication needs
    two parts. In float32 the head may share the embeddings.
    """
    attention_width = arch.heads * arch.padded_head
    qkv, number, embedded = 4, 4, 4
    if quantized:
        number, embedded = 1 if int8_matmul_is_exact() else 2, 2
        qkv = number + arch.qkv_digits - 1
    layer = arch.hidden * (
        arch.qkv_width * qkv + (attention_width + arch.activation_width + arch.inner) * number
    )
    channels = arch.qkv_width + arch.activation_width + 2 * arch.hidden
    norms = 4 * (4 * arch.hidden + 2 * arch.padded_head)
    table = arch.vocabulary * arch.hidden
    head = 0 if arch.ties_head and not quantized else table * number
    return (
        arch.layers * (layer + channels * _CHANNEL_BYTES + norms)
        + table * embedded
        + head
        + arch.vocabulary * _CHANNEL_BYTES
        + 4 * (arch.positions + 2) * arch.hidden
    )


def bytes_per_position(arch: Architecture, threads: int) -> int:
    """Return the memory that grows with the longest row, without keys and values (bytes).

    It consists of RoPE tables, of which three copies exist while they are computed, and the
    attention scores of one tile per thread.
    """
    rotations = 0 if arch.positions else 4 * arch.padded_head
    return 3 * rotations + threads * TILE_ROWS * 4


def working_bytes(arch: Architecture, scratches: Sequence[Scratch], context: int) -> int:
    """Return the memory that steps need in addition (bytes).

    Args:
        arch: Sizes of the model.
        scratches: Scratch buffers of all threads.
        context: Positions in the RoPE tables.
    """
    sampled = SAMPLED_AT_ONCE * arch.vocabulary * LOGIT_BYTES
    rotations = 0 if arch.positions else 4 * context * arch.padded_head
    return sum(each.count_bytes() + sampled for each in scratches) + rotations
