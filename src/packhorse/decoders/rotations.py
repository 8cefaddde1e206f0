"""Tables of rotary position embeddings (Su et al. 2021), as transformers computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packhorse.decoders.description import Decoder

Floats = NDArray[np.float32]


def rotation_sets(decoder: Decoder) -> list[tuple[str, bool]]:
    """Return the sets of rotations of a model: key of the settings, and whether the long one."""
    keys = sorted({key for key in decoder.rotations if key is not None})
    lengths = (False, True) if decoder.trained_length else (False,)
    return [(key, is_long) for key in keys for is_long in lengths]


def rotation_starts(decoder: Decoder, context: int) -> NDArray[np.int64]:
    """Return the first row of each layer's rotations in `rotation_tables`; -1 for none."""
    firsts: dict[str, int] = {}
    for number, (key, _) in enumerate(rotation_sets(decoder)):
        firsts.setdefault(key, number * context)
    return np.array([-1 if key is None else firsts[key] for key in decoder.rotations], np.int64)


def rotation_tables(decoder: Decoder, context: int, width: int) -> tuple[Floats, Floats]:
    """Return cosines and sines [sets x context, width], one set after the other.

    Column i belongs to channels i and i + head size / 2 of `Decoder.head_order`; those that are not
    rotated have cosine 1 and sine 0. Columns beyond half a head are 0.
    """
    sets = rotation_sets(decoder)
    cosines, sines = np.zeros((2, len(sets) * context, width), np.float32)
    cosines[:, : decoder.head_size // 2] = 1
    for number, (key, is_long) in enumerate(sets):
        rows = slice(number * context, (number + 1) * context)
        frequencies, factor = rotation_frequencies(decoder, key, is_long=is_long)
        angles = torch.arange(context)[:, None].float() * frequencies
        columns = slice(0, len(frequencies))
        cosines[rows, columns], sines[rows, columns] = angles.cos() * factor, angles.sin() * factor
    return cosines, sines


def rotation_frequencies(decoder: Decoder, key: str, *, is_long: bool) -> tuple[Tensor, float]:
    """Return the inverse frequencies [rotated / 2] and the factor of cosines and sines.

    transformers has functions for all RoPE types but the default one, which is part of its models;
    their import takes seconds.
    """
    every = decoder.config.rope_parameters
    settings = every[key] if key else every
    if (kind := settings["rope_type"]) != "default":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        more: dict[str, Any] = {"layer_type": key} if key else {}
        if is_long:
            more["seq_len"] = decoder.trained_length + 1
        found: tuple[Tensor, float] = ROPE_INIT_FUNCTIONS[kind](decoder.config, **more)
        return found
    exponents = torch.arange(0, decoder.rotated, 2).float() / decoder.rotated
    return 1.0 / settings["rope_theta"] ** exponents, 1.0


def position_scales(decoder: Decoder, context: int) -> Floats:
    """Return the factor of queries at each position [context]; empty if all are 1."""
    beta, length = decoder.query_position_scale
    if not beta:
        return np.empty(0, np.float32)
    positions = torch.arange(context)
    scales: Floats = (1 + beta * torch.log(1 + torch.floor(positions / length))).numpy()
    return scales
