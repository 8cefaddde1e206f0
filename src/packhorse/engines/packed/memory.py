"""What the engine takes while it runs, known from sizes alone before anything is computed.

    weights + the whole cache + for each thread its scratch and the logits it samples from

Beside it there is the process itself: Python, libraries, tokenizer, and the rows on their way.
"""

from __future__ import annotations

from collections.abc import Sequence

from packhorse.engines.packed.architecture import Architecture
from packhorse.engines.packed.int8_matmul import int8_matmul_is_exact
from packhorse.engines.packed.network import SAMPLED_AT_ONCE, Scratch
from packhorse.engines.packed.tiles import TILE_ROWS

_CHANNEL_BYTES = 8
"""Scale and bias of an output channel."""
LOGIT_BYTES = 80
"""Of a logit that is sampled: twice in float32, five steps of the rule in float64, and what sorting
one row takes."""


def weight_bytes(arch: Architecture, *, quantized: bool) -> int:
    """Weights, with their scales and biases. int8: embeddings in 16 bits, numbers in two parts
    where products need it; float32: the head may be the embeddings."""
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
    """What grows with the longest row beside keys and values: rotations, three times while they
    are computed, and for each thread the scores of a tile."""
    rotations = 0 if arch.positions else 4 * arch.padded_head
    return 3 * rotations + threads * TILE_ROWS * 4


def working_bytes(arch: Architecture, scratches: Sequence[Scratch], context: int) -> int:
    """What steps need besides. context: positions of a row, whose rotations are kept."""
    sampled = SAMPLED_AT_ONCE * arch.vocabulary * LOGIT_BYTES
    rotations = 0 if arch.positions else 4 * context * arch.padded_head
    return sum(each.count_bytes() + sampled for each in scratches) + rotations
