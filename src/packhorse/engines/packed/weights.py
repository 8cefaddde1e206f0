"""Weights of a Hugging Face folder as the packed engine multiplies with them.

float32 ones are kept as they are. int8 ones have one scale for each output channel; activations
have one for each row, so that a row's numbers never depend on its neighbours. The input of the
MLP's second product is rotated at run time (`quantization.online_hadamard`). A folder of int8
weights prepared for that (`models.int8_folder`) is read as it is. Weights of another are rounded
here, to nearest: `stored` turns them first, and those of queries, keys and values, which lose most
to rounding, get two int8 digits.
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
from packhorse.engines.packed.int8_products import (
    for_product,
    in_parts,
    int8_product,
    products_are_exact,
)
from packhorse.engines.packed.stored import Rotated, Stored
from packhorse.errors import EngineError
from packhorse.quantization.online_hadamard import fuse_inverse_hadamard

HEAD_COLUMNS = 8192
"""Columns of the vocabulary that are multiplied at once: their logits stay in the cache."""
FINER = 16
"""Steps of a second digit in one of the first: sums of up to 8,000 inputs stay within int32."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Linear:
    """A product. weight: [inputs, outputs] int8 or float32. scales: [outputs], 1 for float32.
    bias: [outputs]. finer: a second digit of the weights, worth 1 / FINER of the first, where int8
    is too coarse; None for no more. rest: what int8 weights have beside `weight`, where a product
    of the whole of them would not be exact (`int8_products`); None elsewhere."""

    weight: Tensor
    scales: Floats
    bias: Floats
    finer: Tensor | None = None
    rest: Tensor | None = None

    def multiply(self, rows: Tensor, product: Tensor, spare: Tensor) -> None:
        """product = rows x weight; int8 rows give int32 sums, with a second digit FINER times as
        large. spare: scratch like `product` where there is a second digit or a rest."""
        if self.weight.dtype != torch.int8:
            torch.mm(rows, self.weight, out=product)
            return
        int8_product(rows, self.weight, product)
        if self.rest is not None:
            int8_product(rows, self.rest, spare)
            product += spare
        if self.finer is not None:
            int8_product(rows, self.finer, spare)
            torch.add(spare, product, alpha=FINER, out=product)


@dataclass(frozen=True, slots=True)
class Norm:
    weight: Floats
    bias: Floats


@dataclass(frozen=True, slots=True)
class Layer:
    """query_norm, key_norm: [padded head], empty where heads have no norm."""

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
    """embeddings: [vocabulary, hidden] float32, or the bits of float16 beside int8 weights.
    learned: [positions, hidden], empty where positions rotate. head: logits of HEAD_COLUMNS tokens
    each."""

    embeddings: NDArray[Any]
    learned: Floats
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: tuple[Linear, ...]

    @property
    def ties_head(self) -> bool:
        """The head's numbers are those of the embeddings, in the same memory."""
        return self.head[0].weight.data_ptr() == self.embeddings.ctypes.data

    @property
    def head_scales(self) -> Floats:
        return np.concatenate([part.scales for part in self.head])


def load_weights(folder: Path, built: Architecture, *, quantized: bool) -> Weights:
    """Reads, arranges and, if `quantized`, rounds the weights, one layer at a time.

    Raises ModelError for weights that are missing or have another shape than the config says,
    EngineError for int8 ones that are to be float32.
    """
    gpt2 = built.family == "gpt2"
    if built.holds_int8 and not quantized:
        raise EngineError(f"{folder} holds int8 weights", "add --quantization int8")
    turns = quantized and not (gpt2 or built.holds_int8)
    stored = Rotated(folder, built) if turns else Stored(folder)
    make = _Maker(built, quantized)
    names = ("wte", "ln_f") if gpt2 else ("embed_tokens", "norm")
    embeddings = stored.get(f"{names[0]}.weight", built.vocabulary, built.hidden)
    layers = tuple(
        (_gpt2_layer if gpt2 else _llama_layer)(stored, make, number)
        for number in range(built.layers)
    )
    head = stored.head(built, embeddings)
    learned = np.empty((0, 0), np.float32)
    if gpt2:
        learned = stored.get("wpe.weight", built.positions, built.hidden).numpy()
    return Weights(
        embeddings=(embeddings.half().view(torch.int16) if quantized else embeddings).numpy(),
        learned=learned,
        layers=layers,
        final_norm=make.norm(stored, names[1]),
        head=tuple(
            make.linear(head[start : start + HEAD_COLUMNS])
            for start in range(0, built.vocabulary, HEAD_COLUMNS)
        ),
    )


@dataclass(frozen=True, slots=True)
class _Maker:
    """Arranges weights, given as [outputs, inputs]."""

    built: Architecture
    quantized: bool

    def linear(self, weight: Tensor, bias: Tensor | None = None, *, digits: int = 1) -> Linear:
        outputs = weight.shape[0]
        held = np.zeros(outputs, np.float32) if bias is None else bias.contiguous().numpy()
        if not self.quantized:
            return Linear(weight.t(), np.ones(outputs, np.float32), held)
        scales = weight.abs().amax(dim=1).clamp_min(1e-30) / 127
        steps = weight / scales[:, None]
        whole = steps.round()
        first, rest = whole.to(torch.int8), None
        if not products_are_exact():
            first, second = in_parts(first)
            rest = for_product(second)
        if digits == 1:
            return Linear(for_product(first), scales.numpy(), held, rest=rest)
        finer = for_product(((steps - whole) * FINER).round().to(torch.int8))
        return Linear(for_product(first), (scales / FINER).numpy(), held, finer, rest)

    def norm(self, stored: Stored, name: str) -> Norm:
        hidden = self.built.hidden
        return Norm(
            stored.get(f"{name}.weight", hidden).numpy(),
            stored.bias(name, hidden, held=self.built.family == "gpt2").numpy(),
        )

    def head_norm(self, stored: Stored, name: str) -> Floats:
        if not self.built.has_head_norms:
            return np.empty(0, np.float32)
        weight = stored.get(f"{name}.weight", self.built.head_size)
        return self.padded(weight[:, None])[:, 0].contiguous().numpy()

    def padded(self, rows: Tensor) -> Tensor:
        """[heads x head size, n] -> [heads x padded head, n]: both halves of each head padded."""
        built, inputs = self.built, rows.shape[1]
        half, whole = built.head_size // 2, built.padded_head // 2
        if half == whole:
            return rows
        halves = rows.reshape(-1, half, inputs)
        return torch.nn.functional.pad(halves, (0, 0, 0, whole - half)).reshape(-1, inputs)

    def down(self, weight: Tensor, bias: Tensor) -> Linear:
        """The MLP's second product: [hidden, inner], of an input that is turned in int8."""
        turns = self.quantized and not self.built.holds_int8
        return self.linear(fuse_inverse_hadamard(weight) if turns else weight, bias)


def _llama_layer(stored: Stored, make: _Maker, number: int) -> Layer:
    built, start = make.built, f"layers.{number}."
    width, hidden, inner = built.heads * built.head_size, built.hidden, built.inner
    kv_width = built.kv_heads * built.head_size
    qkv, output, mlp = built.biases

    def both(names: tuple[str, ...], widths: tuple[int, ...]) -> Linear:
        weights, biases = [], []
        for name, outputs in zip(names, widths, strict=True):
            weight = stored.get(f"{start}{name}.weight", outputs, hidden)
            is_head = name.startswith("self_attn")
            bias = stored.bias(f"{start}{name}", outputs, held=qkv if is_head else mlp)[:, None]
            weights.append(make.padded(weight) if is_head else weight)
            biases.append(make.padded(bias) if is_head else bias)
        digits = built.qkv_digits if names[0].startswith("self_attn") else 1
        return make.linear(torch.cat(weights), torch.cat(biases)[:, 0], digits=digits)

    out = stored.get(f"{start}self_attn.o_proj.weight", hidden, width)
    down = stored.get(f"{start}mlp.down_proj.weight", hidden, inner)
    return Layer(
        attention_norm=make.norm(stored, f"{start}input_layernorm"),
        qkv=both(
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            (width, kv_width, kv_width),
        ),
        out=make.linear(
            make.padded(out.t().contiguous()).t().contiguous(),
            stored.bias(f"{start}self_attn.o_proj", hidden, held=output),
        ),
        mlp_norm=make.norm(stored, f"{start}post_attention_layernorm"),
        up=both(("mlp.gate_proj", "mlp.up_proj"), (inner, inner)),
        down=make.down(down, stored.bias(f"{start}mlp.down_proj", hidden, held=mlp)),
        query_norm=make.head_norm(stored, f"{start}self_attn.q_norm"),
        key_norm=make.head_norm(stored, f"{start}self_attn.k_norm"),
    )


def _gpt2_layer(stored: Stored, make: _Maker, number: int) -> Layer:
    """GPT-2 stores weights as [inputs, outputs], and queries, keys and values as one."""
    built, start = make.built, f"h.{number}."
    hidden, inner = built.hidden, built.inner

    def weight(name: str, inputs: int, outputs: int) -> Tensor:
        return stored.get(f"{start}{name}.weight", inputs, outputs).t().contiguous()

    def bias(name: str, outputs: int) -> Tensor:
        return stored.get(f"{start}{name}.bias", outputs)

    qkv = make.padded(weight("attn.c_attn", hidden, 3 * hidden))
    qkv_bias = make.padded(bias("attn.c_attn", 3 * hidden)[:, None])[:, 0]
    out = make.padded(stored.get(f"{start}attn.c_proj.weight", hidden, hidden)).t().contiguous()
    none = np.empty(0, np.float32)
    return Layer(
        attention_norm=make.norm(stored, f"{start}ln_1"),
        qkv=make.linear(qkv, qkv_bias, digits=built.qkv_digits),
        out=make.linear(out, bias("attn.c_proj", hidden)),
        mlp_norm=make.norm(stored, f"{start}ln_2"),
        up=make.linear(weight("mlp.c_fc", hidden, inner), bias("mlp.c_fc", inner)),
        down=make.down(weight("mlp.c_proj", inner, hidden), bias("mlp.c_proj", hidden)),
        query_norm=none,
        key_norm=none,
    )
