"""Write int8 weights as the engine holds them, one layer at a time.

Tensors of model.safetensors, in this order (P: panels of 64 outputs, see `panels`):

    layers.N.LINEAR.panels    int8 [P, inputs / 4, 64, 4]    LINEAR: qkv (heads padded), out,
    layers.N.LINEAR.offsets   int32 [64 P]                   up (gate and up), down; those of
                                                             all experts one after the other; router
    layers.N.LINEAR.scales    float32 [64 P]
    layers.N.LINEAR.bias      float32 [64 P]
    layers.N.LINEAR.low_panels, .low_offsets                 if there is a second digit
    layers.N.NORM.weight, .bias                              float32; attention_norm,
                                                             attention_post_norm, mlp_norm,
                                                             mlp_post_norm, each if any
    layers.N.query_norm, .key_norm                           float32 [padded head], or of all heads,
                                                             if any
    head.PART.*                                              like LINEAR; HEAD_COLUMNS tokens each
    final_norm.weight, .bias
    embeddings                                               float16 [vocabulary, hidden]
    position_embeddings                                      float32, if any

Weights of the down projection expect an input rotated by `quantization.online_hadamard`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packhorse.engines.packed.architecture import Architecture, read_architecture
from packhorse.engines.packed.arrangement import WeightBuilder, in_order, open_tensors
from packhorse.engines.packed.checkpoint_tensors import CheckpointTensors, ModelTensors
from packhorse.engines.packed.layers import HEAD_COLUMNS, Linear, Norm
from packhorse.models.int8_folder import WEIGHTS, write_int8_config
from packhorse.models.safetensors_data import open_writer
from packhorse.storage.json_files import read_object

_TENSORS_PER_LINEAR, _TENSORS_PER_LAYER, _OTHER_TENSORS = 6, 40, 8
_ROUNDED_QKV_DIGITS, _PREPARED_QKV_DIGITS = 2, 1


@torch.no_grad()
def write_int8(
    source: Path,
    target: Path,
    rounded: Mapping[str, Tensor] | None = None,
    advance: Callable[[float], None] = lambda share: None,
) -> None:
    """Write config.json and int8 weights of a model.

    Args:
        source: Hugging Face folder of the model.
        target: Folder of the int8 weights.
        rounded: Parameters of the model by name if they were rounded already, with a rotated input
            of the down projection and an untied head. Without, the weights of `source` are rotated
            and rounded to nearest, and those of queries, keys and values get two digits.
        advance: Receives the share of the work done.

    Raises:
        ModelError: Weights are missing or their shape differs from the config.
        EngineError: The engine does not run the model.
    """
    arch, digits = read_architecture(source), _ROUNDED_QKV_DIGITS
    if rounded is None:
        tensors: CheckpointTensors = open_tensors(source, arch, rotated=True)
    else:
        arch, digits = replace(arch, ties_head=False), _PREPARED_QKV_DIGITS
        tensors = ModelTensors(rounded, arch)
    build = WeightBuilder(tensors, quantized=True, native=True, qkv_digits=digits)
    parts = -(-arch.vocabulary // HEAD_COLUMNS)
    count = arch.layers * _TENSORS_PER_LAYER + parts * _TENSORS_PER_LINEAR + _OTHER_TENSORS
    with open_writer(target / WEIGHTS, count) as writer:
        for name, array, share in _arrays(build, arch):
            writer.write(name, array)
            advance(share)
        writer.write_parts("embeddings", (arch.vocabulary, arch.hidden), _embeddings(build))
    write_int8_config(target, read_object(source / "config.json"), digits)


def _arrays(build: WeightBuilder, arch: Architecture) -> Iterator[tuple[str, NDArray[Any], float]]:
    """Yield the name and data of each tensor but the embeddings, and the share of the work."""
    for number, layer in enumerate(in_order(build.layers())):
        share = (number + 1) / (arch.layers + 1)
        for each in fields(layer):
            for name, array in _named(f"layers.{number}.{each.name}", getattr(layer, each.name)):
                yield name, array, share
    for number, part in enumerate(in_order(build.head())):
        for name, array in _named(f"head.{number}", part):
            yield name, array, 1.0
    for name, array in _named("final_norm", build.final_norm()):
        yield name, array, 1.0
    if (positions := build.position_embeddings()).size:
        yield "position_embeddings", positions, 1.0


def _embeddings(build: WeightBuilder) -> Iterator[NDArray[Any]]:
    for rows in in_order(build.half_embeddings()):
        yield rows.view(np.float16)


def _named(
    name: str, part: Linear | Norm | NDArray[Any] | None
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the arrays of a part of a layer that are not empty, by name."""
    if part is None:
        return
    if isinstance(part, np.ndarray):
        if part.size:
            yield name, part
        return
    for each in fields(part):
        value = getattr(part, each.name)
        if isinstance(value, np.ndarray) and value.size:
            yield f"{name}.{each.name}", value
