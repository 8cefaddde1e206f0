"""Check that the sizes in a config.json fit the weights beside it.

A library builds what a config describes before it reads the weights: a billion layers take forever,
a vocabulary of a billion takes all memory. So sizes are compared with the headers of the weights
before any library reads the folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.errors import ModelError
from packhorse.models.safetensors_header import TensorEntry
from packhorse.storage.json_files import decode, shown

MAX_CONTEXT = 1 << 26
"""More tokens of context than any model has, and than any engine could hold in memory."""
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
"""Keys of a config that give the context length, in order of preference."""

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "vocab_size")
_CONTEXTS = (*CONTEXT_KEYS, "max_sequence_length", "original_max_position_embeddings")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_SIZES = (
    "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size",
    "num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads", "num_kv_heads",
    "head_dim", "num_experts_per_tok",
    "state_size", "conv_kernel", "rotary_dim",
)  # fmt: skip
_TYPES: dict[str, Any] = {
    "model_type": str, "architectures": list[str] | str, "is_encoder_decoder": bool,
    "is_decoder": bool, "quantization_config": dict[str, Any], "quantization": dict[str, Any],
    "auto_map": dict[str, Any], "tie_word_embeddings": bool, "eos_token_id": list[int] | int,
    "rope_scaling": dict[str, Any], "rope_parameters": dict[str, Any],
    "text_config": dict[str, Any],
}  # fmt: skip
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
_HINT = "config.json was changed or belongs to another model: copy or fetch it again"
_MAX_SIZE = 1 << 31
_PACKED_PER_INTEGER = 16
_SANE_PARTS = 10_000
_IMPLEMENTATION = re.compile(r"_?(attn|experts)_implementation(_internal)?")


@dataclass(frozen=True, slots=True)
class StoredSizes:
    """Upper bounds of what the files of a model hold.

    Attributes:
        tensors: Number of tensors.
        largest_dimension: Largest dimension of any tensor.
        elements: Number of elements in all tensors; integers count as the values packed into them.
    """

    tensors: int
    largest_dimension: int
    elements: int


def stored_sizes(tensors: Mapping[str, TensorEntry]) -> StoredSizes:
    """Return the sizes of tensors as safetensors headers describe them."""
    largest = elements = 0
    for tensor in tensors.values():
        packed = 1 if tensor.dtype.startswith(("F64", "F32", "F16", "BF")) else _PACKED_PER_INTEGER
        largest = max(largest, packed * max(tensor.shape, default=1))
        elements += packed * math.prod(tensor.shape)
    return StoredSizes(len(tensors), largest, elements)


def sizes_of_bytes(count: int) -> StoredSizes:
    """Return the sizes of files whose headers cannot be read without unpickling, by their bytes."""
    return StoredSizes(min(count, _SANE_PARTS), count, 2 * count)


def require_types(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError if a value of a config.json has the wrong type."""
    for prefix, part in _nested_configs(config):
        for name, annotation in _TYPES.items():
            if part.get(name) is not None:
                _decode(folder, annotation, part[name], f"{prefix}{name}")


def require_plausible(folder: Path, config: Mapping[str, Any], stored: StoredSizes) -> None:
    """Raise ModelError if a number in a config.json does not fit the weights."""
    widest = max(stored.largest_dimension, 1)
    for prefix, part in _nested_configs(config):
        is_text = not prefix or prefix.removesuffix(".") in _TEXT_CONFIGS
        layers = max(stored.tensors, 1) if is_text else _SANE_PARTS
        widths = widest if is_text else _MAX_SIZE
        held = f"the files hold {stored.tensors} tensors" if is_text else ""
        bounds = [(_LAYERS, 1, layers, held), (_CONTEXTS, 1, MAX_CONTEXT, "")]
        bounds += [(_WIDTHS, 1, widths, "no tensor in the files is larger" if is_text else "")]
        bounds += [(_EXPERTS, 0, widths, "")]  # the router has an output for each
        bounds += [(("num_labels",), 0, _SANE_PARTS, "")]  # each gets a name
        bounds += [(_SIZES, 0, min(_MAX_SIZE, max(stored.elements, 1)), "")]
        for names, least, most, reason in bounds:
            for name in names:
                if part.get(name) is not None:
                    where = f"{folder}/config.json: {prefix}{name}"
                    require_counts(where, part[name], (least, most), reason, _HINT)


def refuse_kernels(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError if a config asks for a kernel of a repository, at any depth.

    transformers would fetch and run it. Vision-language models have configs inside their config.
    """
    pending: list[tuple[str, Any]] = list(config.items())
    while pending:
        name, value = pending.pop()
        names_kernel = _IMPLEMENTATION.fullmatch(name) is not None
        if isinstance(value, dict):
            pending += [(name if names_kernel else key, each) for key, each in value.items()]
        elif isinstance(value, list):
            pending += [(name, each) for each in value]
        elif names_kernel and isinstance(value, str) and "/" in value:
            raise ModelError(
                f"{folder}/config.json asks for the kernel {value!r} ({name}), "
                "and packhorse runs no code that comes with a model",
                f"remove {name} from config.json: transformers' own code is used then",
            )


def _nested_configs(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the config and the configs inside it, each with the prefix of its keys."""
    yield "", config
    for name, value in config.items():
        if name.endswith("_config") and isinstance(value, dict) and name != "quantization_config":
            yield f"{name}.", value


def require_counts(where: str, value: Any, bounds: tuple[int, int], reason: str, hint: str) -> None:
    """Raise ModelError unless `value` is a whole number within bounds, or a list of one per layer.

    Args:
        where: File and key, for the message.
        value: The value.
        bounds: Smallest and largest value.
        reason: Reason of the upper bound, or "".
        hint: What to do.
    """
    values = value if isinstance(value, list) else [value]
    if len(values) > _SANE_PARTS:
        raise ModelError(f"{where} has {len(values):,} values", hint)
    for each in values:
        if isinstance(value, list) and each is None:
            continue
        if type(each) is not int or not bounds[0] <= each <= bounds[1]:
            because = f" ({reason})" if reason and type(each) is int and each > bounds[1] else ""
            raise ModelError(
                f"{where} must be a whole number from {bounds[0]} to {bounds[1]}{because}, "
                f"got {shown(each)}",
                hint,
            )


def _decode(folder: Path, annotation: Any, value: Any, where: str) -> None:
    try:
        decode(annotation, value, where)
    except ValueError as error:
        raise ModelError(f"{folder}/config.json: {error}", _HINT) from error
