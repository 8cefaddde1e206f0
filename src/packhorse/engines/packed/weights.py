"""Weights of a model in the layout of the engine's matrix multiplications.

float32 weights are arranged, not changed. int8 weights have one scale per output channel and
activations one per row, so the result of a row never depends on its neighbours. The input of the
MLP's down projection is rotated at run time (`quantization.online_hadamard`). Prepared int8 weights
(`models.int8_folder`) are mapped into memory as they are. Those of another folder are rotated
(`checkpoint_tensors`) and rounded to nearest here, and the QKV weights, which lose most to
rounding, get two int8 digits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from packhorse.engines.packed.architecture import Architecture
from packhorse.engines.packed.arrangement import arrange, open_tensors
from packhorse.engines.packed.checkpoint_tensors import row_slices
from packhorse.engines.packed.layers import (
    HEAD_COLUMNS,
    LOW_DIGIT_STEPS,
    ROUTER_DIGITS,
    Layer,
    Linear,
    Norm,
    Weights,
)
from packhorse.engines.packed.panels import PANEL, panels_shape
from packhorse.errors import EngineError
from packhorse.models.int8_folder import map_int8_tensors

__all__ = ("HEAD_COLUMNS", "LOW_DIGIT_STEPS", "Layer", "Linear", "Norm", "Weights", "load_weights")


def load_weights(
    folder: Path, arch: Architecture, *, quantized: bool, native: bool = False
) -> Weights:
    """Read and arrange the weights, and round them if `quantized` and not prepared.

    Args:
        folder: A Hugging Face folder, or one of prepared int8 weights, which are mapped.
        arch: Sizes of the model.
        quantized: Whether the weights become int8.
        native: Whether int8 weights stay in panels.

    Raises:
        ModelError: Weights are missing or their shape differs from the config.
        EngineError: The folder holds int8 weights and float32 was requested.
    """
    if not arch.holds_int8:
        return arrange(open_tensors(folder, arch, rotated=quantized), quantized, native)
    if not quantized:
        raise EngineError(f"{folder} holds int8 weights", "add --quantization int8")
    return _mapped(folder, arch, native)


def _mapped(folder: Path, arch: Architecture, native: bool) -> Weights:
    """Map prepared int8 weights."""
    tensors = map_int8_tensors(folder)

    def linear(name: str, outputs: int, inputs: int, digits: int = 1) -> Linear:
        shape = panels_shape(outputs, inputs)
        padded = shape[0] * PANEL
        arrays: dict[str, Any] = {}
        for key, place in (("", 0), ("low_", 1)):
            if place < digits:
                arrays[f"{key}panels"] = tensors.get(f"{name}.{key}panels", np.int8, *shape)
                arrays[f"{key}offsets"] = tensors.get(f"{name}.{key}offsets", np.int32, padded)
        scales, bias = (
            tensors.get(f"{name}.{part}", np.float32, padded) for part in ("scales", "bias")
        )
        found = Linear(outputs, inputs, scales, bias, **arrays)
        return found if native else found.for_torch()

    def norm(name: str) -> Norm:
        width = arch.hidden if getattr(arch.decoder.names, name.rpartition(".")[2]) else 0
        if not width:
            return Norm(np.empty(0, np.float32), np.empty(0, np.float32))
        return Norm(
            *(tensors.get(f"{name}.{part}", np.float32, width) for part in ("weight", "bias"))
        )

    def layer(number: int) -> Layer:
        start, width = f"layers.{number}.", arch.heads * arch.padded_head
        head_norms = (
            tensors.get(f"{start}{name}", np.float32, size) if size else np.empty(0, np.float32)
            for name, size in zip(("query_norm", "key_norm"), arch.head_norm_widths, strict=True)
        )
        router = None
        if arch.decoder.experts:
            router = linear(f"{start}router", arch.router_width, arch.hidden, ROUTER_DIGITS)
        return Layer(
            norm(f"{start}attention_norm"),
            linear(f"{start}qkv", arch.qkv_width, arch.hidden, arch.qkv_digits),
            linear(f"{start}out", arch.hidden, width),
            norm(f"{start}attention_post_norm"),
            norm(f"{start}mlp_norm"),
            router,
            linear(f"{start}up", arch.mlps * arch.activation_width, arch.hidden),
            linear(f"{start}down", arch.mlps * arch.hidden, arch.inner),
            norm(f"{start}mlp_post_norm"),
            *head_norms,
        )

    table = arch.vocabulary, arch.hidden
    positions = np.empty((0, 0), np.float32)
    if arch.positions:
        positions = tensors.get("position_embeddings", np.float32, arch.positions, arch.hidden)
    return Weights(
        tensors.get("embeddings", np.float16, *table).view(np.int16),
        positions,
        tuple(map(layer, range(arch.layers))),
        norm("final_norm"),
        tuple(
            linear(f"head.{place}", rows.stop - rows.start, arch.hidden)
            for place, rows in enumerate(row_slices(arch.vocabulary, HEAD_COLUMNS))
        ),
    )
