"""Paged key/value cache of all running rows: blocks of 16 tokens, allocated once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from packhorse.engines.packed.architecture import Architecture
from packhorse.engines.packed.tiles import BLOCK


class KeyValueCache:
    """Keys and values in float32, or in int8 with a scale per token and head.

    The operating system maps pages when blocks are first used, so memory grows up to the stated
    size and no further.

    Attributes:
        blocks: Number of blocks in every layer.
        keys: [layers, blocks, kv heads, padded head, BLOCK]; the 16 tokens of a channel are
            contiguous.
        values: [layers, blocks, kv heads, BLOCK, padded head].
        key_scales: [layers, blocks, kv heads, BLOCK]; empty for float32.
        value_scales: Like `key_scales`.
    """

    def __init__(self, arch: Architecture, blocks: int, *, quantized: bool) -> None:
        dtype: Any = np.int8 if quantized else np.float32
        planes = (arch.layers, blocks, arch.kv_heads)
        self.blocks = blocks
        self.keys: NDArray[Any] = np.zeros((*planes, arch.padded_head, BLOCK), dtype)
        self.values: NDArray[Any] = np.zeros((*planes, BLOCK, arch.padded_head), dtype)
        scaled = (*planes, BLOCK) if quantized else (0, 0, 0, 0)
        self.key_scales = np.zeros(scaled, np.float32)
        self.value_scales = np.zeros(scaled, np.float32)

    def copy(self, source: int, target: int) -> None:
        """Copy block `source` to block `target`."""
        for array in self._arrays():
            array[:, target] = array[:, source]

    def clear(self, blocks: list[int]) -> None:
        """Zero blocks that are not finite: they would spread even with a weight of 0."""
        for array in self._arrays():
            array[:, blocks] = 0

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        scales = (self.key_scales, self.value_scales) if self.key_scales.size else ()
        return (self.keys, self.values, *scales)


def bytes_per_token(arch: Architecture, *, quantized: bool) -> int:
    """Return the cache memory per token, in all layers (bytes)."""
    number, scale = (1, 4) if quantized else (4, 0)
    return arch.layers * arch.kv_heads * 2 * (arch.padded_head * number + scale)
