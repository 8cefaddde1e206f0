"""Keys and values of all rows under way, in blocks of 16 tokens, allocated once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from packhorse.engines.packed.architecture import Architecture
from packhorse.engines.packed.tiles import BLOCK


class KeyValueCache:
    """`blocks` blocks in every layer; float32, or int8 with a scale for each token and head.

    keys: [layers, blocks, kv heads, padded head, BLOCK], so that 16 tokens of one number lie
    together. values: [layers, blocks, kv heads, BLOCK, padded head]. key_scales, value_scales:
    [layers, blocks, kv heads, BLOCK], empty for float32. The system gives pages as blocks are
    first used: memory grows to the size stated and no further.
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
        """Block `target` becomes what `source` is."""
        for array in self._arrays():
            array[:, target] = array[:, source]

    def clear(self, blocks: list[int]) -> None:
        """Forgets what is no number: a weight of 0 times that would still be none."""
        for array in self._arrays():
            array[:, blocks] = 0

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        scales = (self.key_scales, self.value_scales) if self.key_scales.size else ()
        return (self.keys, self.values, *scales)


def bytes_per_token(arch: Architecture, *, quantized: bool) -> int:
    """Memory of one token in all layers."""
    number, scale = (1, 4) if quantized else (4, 0)
    return arch.layers * arch.kv_heads * 2 * (arch.padded_head * number + scale)
