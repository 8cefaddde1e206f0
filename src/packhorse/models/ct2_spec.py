"""Complete the specs of CTranslate2's converters, and refuse models that they would change.

A converter turns a transformers model into a tree of weights and settings, a spec. CTranslate2 4.8
writes no factors and no original length for RoPE of type llama3, without which positions rotate as
in a model that was never extended; no head size for Llama and Qwen2; no epsilon for most families;
and no scale of GPT-2's and Gemma 3's attention. It reads other settings under names of older
versions of transformers, and uses a default if they are missing. None of this is an error there:
the model computes other results, in float32 too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs.attention_spec import RotaryScalingType
from ctranslate2.specs.common_spec import Activation
from numpy.typing import NDArray

from packhorse.errors import ModelError
from packhorse.models.ctranslate2_folder import TOKENIZER, Variable, layer_count

_LLAMA3 = (
    "rotary_scaling_factor",
    "rotary_low_freq_factor",
    "rotary_high_freq_factor",
    "original_max_position_embeddings",
)
_EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon")
_TOLERANCE = 1e-4
"""Relative tolerance of frequencies: float32 in CTranslate2, float64 here."""
Frequencies = NDArray[np.float64]


class ModelLostError(ModelError):
    """The converter would change the model."""


@dataclass(frozen=True, slots=True)
class RotaryEmbedding:
    """Rotary position embedding of a layer.

    Attributes:
        frequencies: [rotated pairs] (radians per position).
        scale: Factor of cosines and sines.
    """

    frequencies: Frequencies
    scale: float


def read_rotary_embeddings(model: Any) -> dict[str, RotaryEmbedding]:
    """Return the rotary embeddings of a transformers model by kind of layer.

    The key "" stands for layers without a kind of their own. The result is empty for models without
    rotary embeddings, or without buffers of frequencies.
    """
    found = {}
    for module in model.modules():
        for name, values in module.named_buffers(recurse=False):
            kind = name.removesuffix("inv_freq")
            if kind != name and "original" not in kind:
                scale = float(getattr(module, f"{kind}attention_scaling", 1.0))
                frequencies = values.double().numpy()
                found[kind.rstrip("_")] = RotaryEmbedding(frequencies, scale)
    return found


def complete_spec(spec: Any, config: Any) -> None:
    """Add to a decoder's spec the settings that its converter left out.

    Args:
        spec: Spec of the converted model.
        config: transformers config of the model.
    """
    text = config.get_text_config()
    own_head_size = _own_head_size(text)
    epsilon = next((getattr(text, name) for name in _EPSILONS if hasattr(text, name)), None)
    if epsilon is not None:
        spec.config.layer_norm_epsilon = epsilon
    for name in ("bos_token", "eos_token", "unk_token"):
        if getattr(spec.config, name, "") is None:
            setattr(spec.config, name, "")
    cap = getattr(text, "final_logit_softcapping", None)
    if cap:
        spec.decoder.final_logit_softcapping = np.float32(cap)
    scaling = getattr(text, "rope_parameters", None) or {}
    for number, attention in enumerate(_iterate_attentions(spec)):
        settings = vars(attention)  # a spec refuses to be assigned what it was not made with
        if own_head_size and "head_dim" not in settings:
            settings["head_dim"] = np.int32(own_head_size)
        if (scale := _query_scale(text, number)) is not None:
            settings["queries_scale"] = np.float32(scale)
        if settings.get("rotary_scaling_type") == RotaryScalingType.Llama3 and "factor" in scaling:
            settings["rotary_scaling_factor"] = np.float32(scaling["factor"])
            settings["rotary_low_freq_factor"] = np.float32(scaling["low_freq_factor"])
            settings["rotary_high_freq_factor"] = np.float32(scaling["high_freq_factor"])
            settings["original_max_position_embeddings"] = np.int32(
                scaling["original_max_position_embeddings"]
            )


def require_faithful(spec: Any, config: Any, rotary_embeddings: dict[str, RotaryEmbedding]) -> None:
    """Raise ModelLostError if a decoder's spec is known to compute other results than the model.

    Args:
        spec: Spec of the converted model.
        config: transformers config of the model.
        rotary_embeddings: Result of `read_rotary_embeddings` for the model.
    """
    attentions = [dict(vars(each)) for each in _iterate_attentions(spec)]
    if lost := _find_loss(attentions, int(spec.decoder.activation), config, rotary_embeddings):
        raise ModelLostError(
            f"CTranslate2 would run another model than this {config.get_text_config().model_type}: "
            f"its converter loses {lost}",
            "use --engine transformers",
        )


def require_faithful_folder(folder: Path, variables: Mapping[str, Variable]) -> None:
    """Raise ModelError if a user's CTranslate2 folder is known to differ from its model.

    It is checked by its own settings, and by the model's config if the folder holds one.
    """
    from packhorse.models.engine_support import CTRANSLATE2_LLAMA_LIKE, config_of

    attentions = [_read_settings(variables, number) for number in range(layer_count(variables))]
    lost = None
    if any(
        each.get("rotary_scaling_type") == RotaryScalingType.Llama3 and not set(_LLAMA3) <= {*each}
        for each in attentions
    ):
        lost = "the factors of its rotations (llama3)"
    places = (folder / "hf_config.json", folder / TOKENIZER / "config.json")
    config = next((config_of(path) for path in places if path.is_file()), None)
    activation = variables.get("decoder/activation")
    if config is not None and activation is not None and not lost:
        text, rotary_embeddings = config.get_text_config(), {}
        if text.model_type in CTRANSLATE2_LLAMA_LIKE:
            from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

            rotary_embeddings = read_rotary_embeddings(LlamaRotaryEmbedding(text))
        lost = _find_loss(attentions, int(activation.value or 0), config, rotary_embeddings)
    if lost:
        raise ModelError(
            f"{folder} holds another model than it was made from: its converter lost {lost}",
            "give the Hugging Face folder it was made from",
        )


def _read_settings(variables: Mapping[str, Variable], number: int) -> dict[str, Any]:
    """Return the settings of a layer's attention in a CTranslate2 folder, by names of the spec."""
    start = f"decoder/layer_{number}/self_attention/"
    held = {name.removeprefix(start): v for name, v in variables.items() if name.startswith(start)}
    return {name: each.value for name, each in held.items() if each.value is not None}


def _find_loss(
    attentions: Sequence[Mapping[str, Any]],
    activation: int,
    config: Any,
    rotary_embeddings: dict[str, RotaryEmbedding],
) -> str | None:
    """Return what the settings are known to lose of a model, None for nothing."""
    text = config.get_text_config()
    kinds = _layer_kinds(text)
    head_size = _own_head_size(text) or text.hidden_size // text.num_attention_heads
    lost = None
    if getattr(text, "attn_logit_softcapping", None):
        lost = "the cap of its attention scores"
    if activation == Activation.SWISH and _activation_name(text) not in ("silu", "swish"):
        lost = f"its activation {_activation_name(text)!r}"
    if len(attentions) != len(kinds):
        return f"{len(kinds) - len(attentions)} of its layers"
    for number, attention in enumerate(attentions):
        wanted = rotary_embeddings.get(kinds[number]) or rotary_embeddings.get("")
        window = int(attention.get("sliding_window") or 0)
        if (wide := _layer_window(text, kinds[number])) and window != wide:
            lost = "the window of its attention"
        elif wanted and "rotary_dim" in attention:
            given = _compute_frequencies(attention, head_size)
            if wanted.scale != 1 or not _are_equal(given, wanted.frequencies):
                lost = "how its positions rotate"
    return lost


def _own_head_size(text: Any) -> int | None:
    """Return the head size if it is not hidden size / number of heads, else None."""
    size = getattr(text, "head_dim", None)
    return size if size and size * text.num_attention_heads != text.hidden_size else None


def _query_scale(text: Any, layer: int) -> float | None:
    """Return the factor of queries if settings change it from 1/sqrt(head size), else None.

    These are `query_pre_attn_scalar` of Gemma 2 and 3, and two settings of GPT-2.
    """
    if squared := getattr(text, "query_pre_attn_scalar", None):
        return 1 / math.sqrt(squared)
    is_scaled = getattr(text, "scale_attn_weights", True)
    by_layer = getattr(text, "scale_attn_by_inverse_layer_idx", False)
    if is_scaled and not by_layer:
        return None
    usual = math.sqrt(text.num_attention_heads / text.hidden_size)
    return (usual if is_scaled else 1.0) / (layer + 1 if by_layer else 1)


def text_elements(model: Any) -> int:
    """Return the number of elements in a transformers model's text layers.

    Embeddings, learned positions and head are left out.
    """
    from torch.nn import Embedding

    decoder = model.get_decoder()
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", 0)
    outside = [model.get_input_embeddings(), model.get_output_embeddings()]
    tables = [each for each in decoder.modules() if isinstance(each, Embedding)]
    outside += [each for each in tables if 0 <= each.num_embeddings - positions <= 2]
    left_out = {id(each) for module in outside if module for each in module.parameters()}
    return sum(each.numel() for each in decoder.parameters() if id(each) not in left_out)


def require_all_weights_used(family: str, converted: int, original: int, hint: str) -> None:
    """Raise ModelError if a converter left out weights, see `layer_elements`, `text_elements`."""
    if converted < original:
        raise ModelError(
            f"CTranslate2 would run another model than this {family}: its converter leaves out "
            f"{original - converted:,} of the {original:,} weights of its layers",
            hint,
        )


def vocabulary_names(tokens: Mapping[str, int], size: int) -> list[str]:
    """Return names of `size` token ids; ids that the tokenizer does not use get names too."""
    names = {token_id: token for token, token_id in tokens.items()}
    mark = "unused"
    while any(token.startswith(f"<{mark}_id_") for token in tokens):
        mark += "_"
    return [names.get(token_id, f"<{mark}_id_{token_id}>") for token_id in range(size)]


def _iterate_attentions(spec: Any) -> Iterator[Any]:
    return (layer.self_attention for layer in spec.decoder.layer)


def _activation_name(text: Any) -> str:
    return str(getattr(text, "hidden_act", None) or "silu")


def _layer_kinds(text: Any) -> list[str]:
    """Return the kind of attention of each layer, by transformers' names."""
    if text.model_type in ("llama", "gemma", "mistral"):
        kind = "sliding_attention" if text.model_type == "mistral" else "full_attention"
        return [kind] * text.num_hidden_layers
    kinds = getattr(text, "layer_types", None)
    return list(kinds) if kinds else ["full_attention"] * text.num_hidden_layers


def _layer_window(text: Any, kind: str) -> int:
    """Return the attention window of a kind of layer (tokens), 0 for full attention."""
    window = getattr(text, "sliding_window", None) or 0
    context = getattr(text, "max_position_embeddings", math.inf)
    return window if kind == "sliding_attention" and window < context else 0


def _compute_frequencies(settings: Mapping[str, Any], head_size: int) -> Frequencies:
    """Return the frequencies that CTranslate2 computes from a layer's settings.

    Source: src/layers/attention_layer.cc, RotaryEmbeddings::initialize.
    """
    rotated = int(settings["rotary_dim"]) or int(settings.get("head_dim", head_size))
    plain = float(settings["rotary_base"]) ** -(np.arange(0, rotated, 2) / rotated)
    kind, factor = settings.get("rotary_scaling_type"), settings.get("rotary_scaling_factor", 1)
    if kind == RotaryScalingType.Linear:
        return plain / float(factor)
    if kind != RotaryScalingType.Llama3:
        return plain
    low, high = (float(settings[f"rotary_{name}_freq_factor"]) for name in ("low", "high"))
    turns = int(settings.get("original_max_position_embeddings", 0)) * plain / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - share) * plain / float(factor) + share * plain


def _are_equal(given: Frequencies, wanted: Frequencies) -> bool:
    """Return whether two rotary embeddings are equal; missing pairs do not rotate."""
    if len(given) > len(wanted):
        return False
    padded = np.pad(given, (0, len(wanted) - len(given)))
    return bool(np.allclose(padded, wanted, rtol=_TOLERANCE, atol=0))
