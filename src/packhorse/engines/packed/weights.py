"""Weights of a Hugging Face folder in the layout of the engine's matrix multiplications.

float32 weights are kept unchanged. int8 weights have one scale per output channel and activations
one per row, so the result of a row never depends on its neighbours. The input of the MLP's down
projection is rotated at run time (`quantization.online_hadamard`). A folder of int8 weights
prepared for that (`models.int8_folder`) is read as it is. Other weights are rounded to nearest
here: `checkpoint_tensors` rotates them first, and the QKV weights, which lose most to rounding, get
two int8 digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packhorse.engines.packed.architecture import Architecture
from packhorse.engines.packed.checkpoint_tensors import CheckpointTensors, RotatedTensors
from packhorse.engines.packed.int8_matmul import (
    arrange_for_matmul,
    int8_matmul,
    int8_matmul_is_exact,
    split_in_two,
)
from packhorse.errors import EngineError
from packhorse.quantization.online_hadamard import fuse_inverse_hadamard

HEAD_COLUMNS = 8192
"""Vocabulary columns that are multiplied at once, so that their logits stay in the CPU cache."""
LOW_DIGIT_STEPS = 16
"""Steps of the low digit per step of the high one; sums of up to 8,000 inputs fit into int32."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer.

    Attributes:
        weight: [inputs, outputs] int8 or float32.
        scales: [outputs]; 1 for float32.
        bias: [outputs].
        low_digit: Second int8 digit of the weights, worth 1 / LOW_DIGIT_STEPS of the first; None if
            one digit suffices.
        remainder: Second part of the int8 weights if multiplying the whole would not be exact (see
            `int8_matmul`); None otherwise.
    """

    weight: Tensor
    scales: Floats
    bias: Floats
    low_digit: Tensor | None = None
    remainder: Tensor | None = None

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
    weight: Floats
    bias: Floats


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one decoder layer.

    Attributes:
        query_norm: [padded head]; empty without head norms.
        key_norm: Like `query_norm`.
    """

    attention_norm: Norm
    qkv: Linear
    out: Linear
    mlp_norm: Norm
    up: Linear
    down: Linear
    query_norm: Floats
    key_norm: Floats


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of a model.

    Attributes:
        embeddings: [vocabulary, hidden] float32, or the bits of float16 with int8 weights.
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
        return self.head[0].weight.data_ptr() == self.embeddings.ctypes.data

    @property
    def head_scales(self) -> Floats:
        return np.concatenate([part.scales for part in self.head])


def load_weights(folder: Path, arch: Architecture, *, quantized: bool) -> Weights:
    """Read, arrange and, if `quantized`, round the weights, one layer at a time.

    Raises:
        ModelError: Weights are missing or their shape differs from the config.
        EngineError: The folder holds int8 weights and float32 was requested.
    """
    gpt2 = arch.family == "gpt2"
    if arch.holds_int8 and not quantized:
        raise EngineError(f"{folder} holds int8 weights", "add --quantization int8")
    rotates = quantized and not (gpt2 or arch.holds_int8)
    tensors = RotatedTensors(folder, arch) if rotates else CheckpointTensors(folder)
    build = _WeightBuilder(arch, quantized)
    names = ("wte", "ln_f") if gpt2 else ("embed_tokens", "norm")
    embeddings = tensors.get(f"{names[0]}.weight", arch.vocabulary, arch.hidden)
    layers = tuple(
        (_gpt2_layer if gpt2 else _llama_layer)(tensors, build, number)
        for number in range(arch.layers)
    )
    head = tensors.head(arch, embeddings)
    position_embeddings = np.empty((0, 0), np.float32)
    if gpt2:
        position_embeddings = tensors.get("wpe.weight", arch.positions, arch.hidden).numpy()
    return Weights(
        embeddings=(embeddings.half().view(torch.int16) if quantized else embeddings).numpy(),
        position_embeddings=position_embeddings,
        layers=layers,
        final_norm=build.norm(tensors, names[1]),
        head=tuple(
            build.linear(head[start : start + HEAD_COLUMNS])
            for start in range(0, arch.vocabulary, HEAD_COLUMNS)
        ),
    )


@dataclass(frozen=True, slots=True)
class _WeightBuilder:
    """Builds layers from weights given as [outputs, inputs]."""

    arch: Architecture
    quantized: bool

    def linear(self, weight: Tensor, bias: Tensor | None = None, *, digits: int = 1) -> Linear:
        outputs = weight.shape[0]
        offsets = np.zeros(outputs, np.float32) if bias is None else bias.contiguous().numpy()
        if not self.quantized:
            return Linear(weight.t(), np.ones(outputs, np.float32), offsets)
        scales = weight.abs().amax(dim=1).clamp_min(1e-30) / 127
        steps = weight / scales[:, None]
        whole = steps.round()
        first, remainder = whole.to(torch.int8), None
        if not int8_matmul_is_exact():
            first, second = split_in_two(first)
            remainder = arrange_for_matmul(second)
        if digits == 1:
            return Linear(arrange_for_matmul(first), scales.numpy(), offsets, remainder=remainder)
        low_digit = arrange_for_matmul(((steps - whole) * LOW_DIGIT_STEPS).round().to(torch.int8))
        return Linear(
            arrange_for_matmul(first),
            (scales / LOW_DIGIT_STEPS).numpy(),
            offsets,
            low_digit,
            remainder,
        )

    def norm(self, tensors: CheckpointTensors, name: str) -> Norm:
        hidden = self.arch.hidden
        return Norm(
            tensors.get(f"{name}.weight", hidden).numpy(),
            tensors.bias(name, hidden, has_bias=self.arch.family == "gpt2").numpy(),
        )

    def head_norm(self, tensors: CheckpointTensors, name: str) -> Floats:
        if not self.arch.has_head_norms:
            return np.empty(0, np.float32)
        weight = tensors.get(f"{name}.weight", self.arch.head_size)
        return self.pad_heads(weight[:, None])[:, 0].contiguous().numpy()

    def pad_heads(self, rows: Tensor) -> Tensor:
        """Pad both halves of each head: [heads x head size, n] -> [heads x padded head, n]."""
        arch, inputs = self.arch, rows.shape[1]
        half, whole = arch.head_size // 2, arch.padded_head // 2
        if half == whole:
            return rows
        halves = rows.reshape(-1, half, inputs)
        return torch.nn.functional.pad(halves, (0, 0, 0, whole - half)).reshape(-1, inputs)

    def down(self, weight: Tensor, bias: Tensor) -> Linear:
        """Return the down projection [hidden, inner]; in int8 its input is Hadamard-rotated."""
        rotates = self.quantized and not self.arch.holds_int8
        return self.linear(fuse_inverse_hadamard(weight) if rotates else weight, bias)


def _llama_layer(tensors: CheckpointTensors, build: _WeightBuilder, number: int) -> Layer:
    arch, start = build.arch, f"layers.{number}."
    width, hidden, inner = arch.heads * arch.head_size, arch.hidden, arch.inner
    kv_width = arch.kv_heads * arch.head_size
    qkv, output, mlp = arch.biases

    def concatenate(names: tuple[str, ...], widths: tuple[int, ...]) -> Linear:
        weights, biases = [], []
        for name, outputs in zip(names, widths, strict=True):
            weight = tensors.get(f"{start}{name}.weight", outputs, hidden)
            is_head = name.startswith("self_attn")
            bias = tensors.bias(f"{start}{name}", outputs, has_bias=qkv if is_head else mlp)[
                :, None
            ]
            weights.append(build.pad_heads(weight) if is_head else weight)
            biases.append(build.pad_heads(bias) if is_head else bias)
        digits = arch.qkv_digits if names[0].startswith("self_attn") else 1
        return build.linear(torch.cat(weights), torch.cat(biases)[:, 0], digits=digits)

    out = tensors.get(f"{start}self_attn.o_proj.weight", hidden, width)
    down = tensors.get(f"{start}mlp.down_proj.weight", hidden, inner)
    return Layer(
        attention_norm=build.norm(tensors, f"{start}input_layernorm"),
        qkv=concatenate(
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            (width, kv_width, kv_width),
        ),
        out=build.linear(
            build.pad_heads(out.t().contiguous()).t().contiguous(),
            tensors.bias(f"{start}self_attn.o_proj", hidden, has_bias=output),
        ),
        mlp_norm=build.norm(tensors, f"{start}post_attention_layernorm"),
        up=concatenate(("mlp.gate_proj", "mlp.up_proj"), (inner, inner)),
        down=build.down(down, tensors.bias(f"{start}mlp.down_proj", hidden, has_bias=mlp)),
        query_norm=build.head_norm(tensors, f"{start}self_attn.q_norm"),
        key_norm=build.head_norm(tensors, f"{start}self_attn.k_norm"),
    )


def _gpt2_layer(tensors: CheckpointTensors, build: _WeightBuilder, number: int) -> Layer:
    """Return a GPT-2 layer; its weights are stored as [inputs, outputs] and QKV as one."""
    arch, start = build.arch, f"h.{number}."
    hidden, inner = arch.hidden, arch.inner

    def weight(name: str, inputs: int, outputs: int) -> Tensor:
        return tensors.get(f"{start}{name}.weight", inputs, outputs).t().contiguous()

    def bias(name: str, outputs: int) -> Tensor:
        return tensors.get(f"{start}{name}.bias", outputs)

    qkv = build.pad_heads(weight("attn.c_attn", hidden, 3 * hidden))
    qkv_bias = build.pad_heads(bias("attn.c_attn", 3 * hidden)[:, None])[:, 0]
    out = (
        build.pad_heads(tensors.get(f"{start}attn.c_proj.weight", hidden, hidden)).t().contiguous()
    )
    none = np.empty(0, np.float32)
    return Layer(
        attention_norm=build.norm(tensors, f"{start}ln_1"),
        qkv=build.linear(qkv, qkv_bias, digits=arch.qkv_digits),
        out=build.linear(out, bias("attn.c_proj", hidden)),
        mlp_norm=build.norm(tensors, f"{start}ln_2"),
        up=build.linear(weight("mlp.c_fc", hidden, inner), bias("mlp.c_fc", inner)),
        down=build.down(weight("mlp.c_proj", inner, hidden), bias("mlp.c_proj", hidden)),
        query_norm=none,
        key_norm=none,
    )
