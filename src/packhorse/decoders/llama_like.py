"""A decoder that differs from Llama only in what its family states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from packhorse.decoders.description import LLAMA_NAMES, Activation, Decoder

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}
SLIDING, FULL = "sliding_attention", ("full_attention", "attention")


class UnsupportedError(Exception):
    """A model has something that descriptions do not cover; the text names it."""


def llama_like(config: Any, activation: str | None = None, **changes: Any) -> Decoder:
    """Return the description of a model that differs from Llama only in `changes`.

    Args:
        config: transformers config.
        activation: Name of the activation function; None for that of the config.
        changes: Fields of `Decoder`; `names` are changes to Llama's names.
    """
    layers, heads = int(config.num_hidden_layers), int(config.num_attention_heads)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    partial = changes.pop("partial_rotation", False)
    names = replace(LLAMA_NAMES, **changes.pop("names", {}))
    rotations = changes.pop("rotations", None)
    rotations = ("",) * layers if rotations is None else rotations
    rotated, trained_length = head_size, 0
    for key in {key for key in rotations if key is not None}:
        settings = config.rope_parameters[key] if key else config.rope_parameters
        factor = _require_rotation(settings, config.model_type, partial)
        rotated = int(head_size * factor)
        if settings["rope_type"] == "longrope":
            trained_length = _trained_length(config, settings)
    return Decoder(
        **{
            "family": str(config.model_type),
            "config": config,
            "layers": layers,
            "hidden": config.hidden_size,
            "inner": config.intermediate_size,
            "heads": heads,
            "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
            "head_size": head_size,
            "vocabulary": config.vocab_size,
            "epsilon": getattr(config, "rms_norm_eps", 0.0),
            "ties_head": config.tie_word_embeddings,
            "names": names,
            "activation": activation_of(config, activation or config.hidden_act),
            "windows": (0,) * layers,
            "rotations": tuple(rotations),
            "rotated": rotated,
            "trained_length": trained_length,
            "attention_scale": head_size**-0.5,
            **changes,
        }
    )


def activation_of(config: Any, name: str) -> Activation:
    """Return the activation function of a name in a config; UnsupportedError if unknown."""
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UnsupportedError(
            f"the activation {name!r} in a {config.model_type} model, only {known}"
        )
    return _ACTIVATIONS[name]


def _require_rotation(settings: Mapping[str, Any], family: str, partial: bool) -> float:
    """Return the share of a head's channels that rotates; UnsupportedError for unknown settings."""
    kind = settings["rope_type"]
    types = (*ROPE_TYPES, "longrope") if family in _RECOMPUTES else ROPE_TYPES
    if kind not in types:
        raise UnsupportedError(f"rotary positions of type {kind!r}, only {', '.join(types)}")
    factor = float(settings.get("partial_rotary_factor") or 1.0)
    if factor != 1.0 and not partial:
        raise UnsupportedError("partial rotary embeddings")
    return factor


_RECOMPUTES = ("phi3",)
"""Families whose `generate` computes a text anew when it exceeds the trained length. The others
continue with keys of both rotations, so their text depends on the length of the prompt."""


def _trained_length(config: Any, settings: Mapping[str, Any]) -> int:
    length = int(settings["original_max_position_embeddings"])
    if length != config.original_max_position_embeddings:
        raise UnsupportedError("two trained lengths in one config")
    return length


def attention_kinds(config: Any) -> tuple[str, ...]:
    """Return the attention kind of each layer; UnsupportedError for an unknown one."""
    kinds = tuple(map(str, config.layer_types))
    if strange := sorted(set(kinds).difference((SLIDING, *FULL))):
        raise UnsupportedError(f"layers of type {strange[0]!r}, only full and sliding attention")
    return kinds


def one_window(config: Any) -> tuple[int, ...]:
    """Return the windows of a family in which the setting applies to every layer."""
    return (int(config.sliding_window or 0),) * int(config.num_hidden_layers)


def windows_by_kind(config: Any) -> tuple[int, ...]:
    """Return the windows of a family with a kind of attention per layer."""
    window = int(config.sliding_window or 0)
    return tuple(window if kind == SLIDING else 0 for kind in attention_kinds(config))


def rotations_by_kind(config: Any) -> tuple[str, ...]:
    """Return the rotations of a family whose settings are by kind of attention."""
    return tuple(key if key in config.rope_parameters else "" for key in attention_kinds(config))


def llama_biases(config: Any) -> dict[str, Any]:
    """Return the biases of families with Llama's settings for them."""
    attention, mlp = config.attention_bias, getattr(config, "mlp_bias", False)
    return {"qkv_bias": attention, "output_bias": attention, "mlp_bias": mlp}
