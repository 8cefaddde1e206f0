"""Weights of a model in the layout of the engine's matrix multiplications."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packhorse.engines.packed.int8_matmul import (
    arrange_for_matmul,
    int8_matmul,
    int8_matmul_is_exact,
    split_in_two,
)
from packhorse.engines.packed.panels import PANEL, unpack_panels

HEAD_COLUMNS = 8192
"""Vocabulary columns that are multiplied at once, so that their logits stay in the CPU cache."""
LOW_DIGIT_STEPS = 16
"""Steps of the low digit per step of the high one; sums of up to 8,000 inputs fit into int32."""
ROUTER_DIGITS = 2
"""int8 digits of the router's weights: a wrong expert costs more than a rounded one."""
Floats = NDArray[np.float32]


def _no_bytes() -> NDArray[np.int8]:
    return np.empty((0, 0, PANEL, 4), np.int8)


def _no_sums() -> NDArray[np.int32]:
    return np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer, for the panel kernels or for torch: one of the two has its weights.

    Attributes:
        outputs: Output channels.
        inputs: Input channels.
        scales: [outputs], in int8 padded to whole panels; 1 for float32.
        bias: Like `scales`.
        weight: [inputs, outputs] int8 or float32 for torch; empty if there are panels.
        low_digit: Second int8 digit of the weights, worth 1 / LOW_DIGIT_STEPS of the first; None if
            one digit suffices.
        remainder: Second part of the int8 weights if multiplying the whole would not be exact (see
            `int8_matmul`); None otherwise.
        panels: int8 or float32 weights in the layout of `panels`; empty without panel kernels.
        offsets: [padded outputs], what sums over `panels` start with (`panels.column_offsets`);
            zeros for float32.
        low_panels: Second digit like `panels`; empty if one digit suffices.
        low_offsets: Like `offsets`.
    """

    outputs: int
    inputs: int
    scales: Floats
    bias: Floats
    weight: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    low_digit: Tensor | None = None
    remainder: Tensor | None = None
    panels: NDArray[Any] = field(default_factory=_no_bytes)
    offsets: NDArray[np.int32] = field(default_factory=_no_sums)
    low_panels: NDArray[np.int8] = field(default_factory=_no_bytes)
    low_offsets: NDArray[np.int32] = field(default_factory=_no_sums)

    def for_torch(self) -> Linear:
        """Return an int8 layer with `weight` in place of `panels`."""
        first = self._unpacked(self.panels)
        remainder = None
        if not int8_matmul_is_exact():
            first, second = split_in_two(first)
            remainder = arrange_for_matmul(second)
        return Linear(
            self.outputs, self.inputs, self.scales, self.bias, arrange_for_matmul(first),
            arrange_for_matmul(self._unpacked(self.low_panels)) if self.low_panels.size else None,
            remainder,
        )  # fmt: skip

    def _unpacked(self, panels: NDArray[np.int8]) -> Tensor:
        return torch.from_numpy(unpack_panels(panels, self.outputs, self.inputs))

    def part(self, outputs: slice) -> Linear:
        """Return some outputs of a layer for torch."""
        low, rest = self.low_digit, self.remainder
        return Linear(
            outputs.stop - outputs.start, self.inputs, self.scales[outputs], self.bias[outputs],
            self.weight[:, outputs], None if low is None else low[:, outputs],
            None if rest is None else rest[:, outputs],
        )  # fmt: skip

    def multiply(self, rows: Tensor, product: Tensor, second_product: Tensor) -> None:
        """Compute product = rows x weight.

        int8 rows give int32 sums, LOW_DIGIT_STEPS times as large if there is a second digit.

        Args:
            rows: [rows, inputs].
            product: [rows, outputs] output.
            second_product: Scratch like `product` if there is a second digit or remainder.
        """
        if self.weight.dtype != torch.int8:
            torch.mm(rows, self.weight, out=product)
            return
        int8_matmul(rows, self.weight, product)
        if self.remainder is not None:
            int8_matmul(rows, self.remainder, second_product)
            product += second_product
        if self.low_digit is not None:
            int8_matmul(rows, self.low_digit, second_product)
            torch.add(second_product, product, alpha=LOW_DIGIT_STEPS, out=product)


@dataclass(frozen=True, slots=True)
class Norm:
    """Gain and bias [hidden] of a norm; both empty if the model has none there."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one decoder layer.

    Attributes:
        router: Projection to experts; None without.
        up: Gate and up projection; those of all experts one after the other.
        down: Down projection, or those of all experts.
        attention_post_norm: Norm of the output of attention before it is added to the residual
            stream.
        mlp_post_norm: Likewise of the MLP.
        query_norm: [padded head], or [heads x padded head] if it is over all heads of a token;
            empty without.
        key_norm: Like `query_norm`.
    """

    attention_norm: Norm
    qkv: Linear
    out: Linear
    attention_post_norm: Norm
    mlp_norm: Norm
    router: Linear | None
    up: Linear
    down: Linear
    mlp_post_norm: Norm
    query_norm: Floats
    key_norm: Floats


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of a model.

    Attributes:
        embeddings: [vocabulary, hidden] float32, or the bits of float16 with int8 weights; a tied
            float32 head in panels is used as it is, [panels, hidden, PANEL].
        position_embeddings: [positions, hidden]; empty if positions use RoPE.
        layers: Decoder layers.
        final_norm: Norm before the head.
        head: Output head in parts of HEAD_COLUMNS tokens.
    """

    embeddings: NDArray[Any]
    position_embeddings: Floats
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: tuple[Linear, ...]

    @property
    def ties_head(self) -> bool:
        """Whether the head uses the memory of the embeddings."""
        address = self.embeddings.ctypes.data
        return address in (self.head[0].weight.data_ptr(), self.head[0].panels.ctypes.data)

    @property
    def head_scales(self) -> Floats:
        return np.concatenate([part.scales[: part.outputs] for part in self.head])
