"""What the engine takes while it runs, known from sizes alone before anything is computed.

    weights + the whole cache + for each thread its scratch and the logits it samples from

Beside it there is the process itself: Python, libraries, tokenizer, and the rows on their way.
"""

from __future__ import annotations

from collections.abc import Sequence

from packhorse.engines.packed.architecture import Architecture
from packhorse.engines.packed.int8_products import products_are_exact
from packhorse.engines.packed.network import SAMPLED_AT_ONCE, Scratch
from packhorse.engines.packed.tiles import TILE_ROWS

_CHANNEL_BYTES = 8
"""Scale and bias of an output channel."""
LOGIT_BYTES = 80
"""Of a logit that is sampled: twice in float32, five steps of the rule in float64, and what sorting
one row takes."""


def weight_bytes(built: Architecture, *, quantized: bool) -> int:
    """Weights, with their scales and biases. int8: embeddings in 16 bits, numbers in two parts
    where products need it; float32: the head may be the embeddings."""
    attended = built.heads * built.padded_head
    qkv, number, embedded = 4, 4, 4
    if quantized:
        number, embedded = 1 if products_are_exact() else 2, 2
        qkv = number + built.qkv_digits - 1
    layer = built.hidden * (
        built.qkv_width * qkv + (attended + built.activation_width + built.inner) * number
    )
    channels = built.qkv_width + built.activation_width + 2 * built.hidden
    norms = 4 * (4 * built.hidden + 2 * built.padded_head)
    table = built.vocabulary * built.hidden
    head = 0 if built.ties_head and not quantized else table * number
    return (
        built.layers * (layer + channels * _CHANNEL_BYTES + norms)
        + table * embedded
        + head
        + built.vocabulary * _CHANNEL_BYTES
        + 4 * (built.positions + 2) * built.hidden
    )


def bytes_per_position(built: Architecture, threads: int) -> int:
    """What grows with the longest row beside keys and values: rotations, three times while they
    are computed, and for each thread the scores of a tile."""
    rotations = 0 if built.positions else 4 * built.padded_head
    return 3 * rotations + threads * TILE_ROWS * 4


def working_bytes(built: Architecture, scratches: Sequence[Scratch], context: int) -> int:
    """What steps need besides. context: positions of a row, whose rotations are kept."""
    sampled = SAMPLED_AT_ONCE * built.vocabulary * LOGIT_BYTES
    rotations = 0 if built.positions else 4 * context * built.padded_head
    return sum(each.bytes() + sampled for each in scratches) + rotations
