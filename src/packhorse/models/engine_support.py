"""Which engines run a model, by its config alone: asked by every hint that names an engine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packhorse.engine_protocol.registry import built_in_engines
from packhorse.models.quiet import quiet_transformers

PACKED_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
PACKED_FAMILIES = (*PACKED_LLAMA_LIKE, "gpt2")
PACKED_MULTIPLE = 16
"""Sizes that the packed engine's vectors divide."""
PACKED_ROTATIONS = ("default", "linear", "llama3", "yarn")
CTRANSLATE2_FAMILIES = (
    *PACKED_FAMILIES, "bloom", "codegen", "falcon", "gemma", "gpt_bigcode", "gptj", "opt",
)  # fmt: skip
"""Families whose converters work with the transformers of today for all or most of their models;
`tests/models/test_engine_support.py` converts one of each."""
_CTRANSLATE2_ROTATIONS = ("default", "linear", "llama3")
_LIBRARIES = {
    "awq": "gptqmodel",
    "gptq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "quanto": "optimum",
    "torchao": "torchao",
    "hqq": "hqq",
    "aqlm": "aqlm",
}
"""What transformers needs to compute with checkpoints of a quantization method."""


def other_engines(config: Any, refusing: str, quantization: str = "auto") -> tuple[str, ...]:
    """The engines beside `refusing` that run a model whole in a number format, fastest first.

    config: the model's, of transformers.
    """
    return tuple(
        entry.name
        for entry in reversed(built_in_engines())
        if entry.name != refusing
        and entry.refusal
        and entry.runs_format(quantization)
        and entry.function(entry.refusal)(config) is None
    )


def instead_of(config: Any, refusing: str, quantization: str = "auto") -> str:
    """A hint that names the engines which run a model that `refusing` does not."""
    if engines := other_engines(config, refusing, quantization):
        return "use " + " or ".join(f"--engine {engine}" for engine in engines)
    if engines := other_engines(config, refusing):
        return f"no engine runs it in {quantization}: use --engine {engines[0]} in another format"
    if method := quantization_method(config):
        library = _LIBRARIES.get(method)
        needed = f", or install {library} and use --engine transformers" if library else ""
        return f"give the unquantized model{needed}"
    return "use a model of another family"


def instead_for_folder(folder: Path, refusing: str, quantization: str = "auto") -> str:
    """`instead_of` for a Hugging Face folder; transformers where its config cannot be read."""
    config = config_of(folder)
    if config is None:
        return "use --engine transformers"
    return instead_of(config, refusing, quantization)


def engines_of_folder(folder: Path, refusing: str, quantization: str) -> tuple[str, ...]:
    """`other_engines` for a Hugging Face folder; none where its config cannot be read."""
    config = config_of(folder)
    return () if config is None else other_engines(config, refusing, quantization)


def config_of(place: Path) -> Any:
    """What transformers makes of a folder's config.json, or of such a file; None for nothing."""
    import transformers

    try:
        with quiet_transformers():
            return transformers.AutoConfig.from_pretrained(
                place, local_files_only=True, trust_remote_code=False
            )
    except Exception:  # noqa: BLE001 - whatever is wrong with it, another message says so
        return None


def quantization_method(config: Any) -> str:
    """How a checkpoint is quantized already, by transformers' names; "" where it is not."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return ""
    method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", method) or "quantized")


def transformers_refusal(config: Any) -> str | None:
    """What transformers lacks for a model of a family that it knows; None for nothing."""
    method = quantization_method(config)
    library = _LIBRARIES.get(method)
    if method == "packhorse" or (library and find_spec(library) is None):
        return f"checkpoints quantized with {method}"
    return None


def packed_refusal(config: Any) -> str | None:
    """What of a model the packed engine does not run; None where it runs it.

    config: of a model that is not quantized, or whose int8 weights are in the engine's own form.
    """
    family = str(config.model_type)
    if family not in PACKED_FAMILIES:
        return f"models of family {family!r}, only {', '.join(PACKED_FAMILIES)}"
    method = quantization_method(config)
    if method and method != "packhorse":
        return "checkpoints that are quantized already"
    refusal = _gpt2_refusal(config) if family == "gpt2" else _llama_like_refusal(family, config)
    if refusal:
        return refusal
    sizes = {"hidden": config.hidden_size, "inner": inner_size(config)}
    for name, size in sizes.items():
        if size % PACKED_MULTIPLE:
            return f"{name} sizes of {size}, only multiples of {PACKED_MULTIPLE}"
    return None


def inner_size(config: Any) -> int:
    """Numbers inside the MLP."""
    if config.model_type == "gpt2":
        return int(config.n_inner or 4 * config.n_embd)
    return int(config.intermediate_size)


def _llama_like_refusal(family: str, config: Any) -> str | None:
    rotation = _rotation(config)
    if rotation not in PACKED_ROTATIONS:
        return f"rotary positions of type {rotation!r}, only {', '.join(PACKED_ROTATIONS)}"
    if config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        return "heads that are rotated in part"
    if config.hidden_act != "silu":
        return f"the activation {config.hidden_act!r} in a {family} model, only silu"
    if family in ("qwen2", "qwen3"):
        known = ("full_attention", "sliding_attention")
        strange = sorted(set(map(str, config.layer_types)).difference(known))
        if strange:
            return f"layers of type {strange[0]!r}, only {', '.join(known)}"
    return None


def _gpt2_refusal(config: Any) -> str | None:
    if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        return f"the activation {config.activation_function!r} in a gpt2 model"
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        return "GPT-2 attention that is scaled in another way than by 1/sqrt(head size)"
    if getattr(config, "add_cross_attention", False):
        return "GPT-2 with cross-attention"
    return None


def ctranslate2_refusal(config: Any) -> str | None:
    """Why CTranslate2 does not run a model whole, as far as its config tells; None where it runs
    it. A model whose attention has a window is refused: rows longer than it are."""
    family = str(config.model_type)
    if family not in CTRANSLATE2_FAMILIES:
        return f"{family} models"
    if quantization_method(config):
        return "checkpoints that are quantized already"
    if getattr(config, "rope_parameters", None) and _rotation(config) not in _CTRANSLATE2_ROTATIONS:
        return f"rotary positions of type {_rotation(config)!r}"
    if family in PACKED_LLAMA_LIKE:
        partial = config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0
        if partial or config.hidden_act != "silu":
            return f"this kind of {family}"
    if attention_window(config):
        return "attention windows"
    if family == "falcon" and config.new_decoder_architecture:
        return "Falcon's newer architecture"
    if family == "gpt_bigcode" and not config.multi_query:
        return "GPT-BigCode without multi-query attention"
    if family == "gemma" and config.rope_parameters.get("rope_theta") != 10000.0:
        return "Gemma with another base of its rotations"
    return None


def attention_window(text: Any) -> int:
    """Positions that attention reaches back at most in some layer, where that is less than the
    context; else 0. text: a text model's config, of transformers."""
    window = getattr(text, "sliding_window", None) or 0
    context = getattr(text, "max_position_embeddings", None) or 0
    if text.model_type in ("llama", "gemma"):  # these read no window
        return 0
    kinds = getattr(text, "layer_types", None)
    if text.model_type != "mistral" and kinds and "sliding_attention" not in kinds:
        return 0
    return window if window < context else 0


def _rotation(config: Any) -> str:
    held = getattr(config, "rope_parameters", None) or {}
    return str(held.get("rope_type", "one for each kind of layer" if held else "default"))
