"""Tell which engines run a model, by its config alone; "auto" and every hint that names an engine
use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.engine_protocol.registry import (
    HUGGINGFACE,
    EngineEntry,
    built_in_engines,
    default_engine,
)
from packhorse.errors import ConfigError, first_line
from packhorse.models.quantized_formats import (
    OWN_METHOD,
    needed_package,
    quantization_method,
    runs_on_transformers,
)
from packhorse.models.quiet import quiet_transformers
from packhorse.models.resolved_config import read_config

PACKED_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
PACKED_FAMILIES = (*PACKED_LLAMA_LIKE, "gpt2")
PACKED_MULTIPLE = 16
"""Hidden and inner sizes on the packed engine are multiples of this (SIMD lanes)."""
PACKED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
CTRANSLATE2_FAMILIES = (
    *PACKED_FAMILIES, "bloom", "codegen", "falcon", "gemma", "gpt_bigcode", "gptj", "opt",
)  # fmt: skip
"""Families whose converters work with current transformers for all or most of their models.

`tests/models/test_engine_support.py` converts one model of each."""
_CTRANSLATE2_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """The options that an engine must be able to run.

    Attributes:
        device: "cpu" or "cuda".
        quantization: Number format, or "auto".
        policy: Batching policy, or "auto".
        workers: Batches in flight at once, None to leave it to the engine.
    """

    device: str = "cpu"
    quantization: str = "auto"
    policy: str = "auto"
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine that "auto" stands for, and the reason in one clause."""

    name: str
    reason: str


def choose_engine(
    config: Any, request: EngineRequest, failures: Mapping[str, str] | None = None
) -> EngineChoice:
    """Return the engine that "auto" stands for.

    On a CPU it is the fastest built-in engine that runs the model with the requested options; in
    float32 no engine costs accuracy. On a GPU it is the slowest, which runs every model.

    Args:
        config: transformers config of the model, None if transformers cannot read it.
        request: Options that the engine must run.
        failures: By engine, why it turned out not to run the model ("does not ...").

    Raises:
        ConfigError: No engine runs the model with these options.
    """
    entries = [entry for entry in built_in_engines() if entry.refusal]
    if config is None:
        return EngineChoice(default_engine(HUGGINGFACE), "transformers cannot read the config")
    on_cpu, form = request.device == "cpu", request.quantization
    reasons: list[str] = []
    for entry in reversed(entries) if on_cpu else entries:
        refusal = (
            (failures or {}).get(entry.name)
            or _option_refusal(entry, request)
            or _model_refusal(entry, config)
        )
        if refusal is None:
            loss = "without accuracy loss" if form in ("auto", "float32") else f"in {form}"
            best = f"fastest {loss} for {config.model_type} on this CPU"
            return EngineChoice(
                entry.name, "; ".join(reasons) or (best if on_cpu else "default on a GPU")
            )
        reasons.append(f"{entry.name} {refusal}")
    raise ConfigError(
        f"no engine runs this {config.model_type} model as requested: {'; '.join(reasons)}",
        "change --quantization, --batching, --device or --workers",
    )


def _option_refusal(entry: EngineEntry, request: EngineRequest) -> str | None:
    """Return why an engine does not run the options, as a predicate; None if it does."""
    if request.device != "cpu" and not entry.device_rule:
        return f"does not run on {request.device}"
    if not entry.computes_format(request.quantization, request.device):
        here = f" on this {request.device}" if entry.runs_format(request.quantization) else ""
        return f"does not run {request.quantization}{here}"
    if not entry.takes_policy(request.policy):
        return f"does not batch rows by {request.policy}"
    if not entry.runs_side_by_side and request.workers not in (None, 1):
        return f"does not run {request.workers} workers"
    return None


def _model_refusal(entry: EngineEntry, config: Any) -> str | None:
    """Return why an engine does not run a model, as a predicate; None if it does."""
    try:
        refusal = entry.function(entry.refusal)(config)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        return f"does not read its config: {first_line(error)}"  # sizes of a wrong type
    return None if refusal is None else f"does not run {refusal.partition(', only ')[0]}"


def other_engines(config: Any, refusing: str, quantization: str = "auto") -> tuple[str, ...]:
    """Return the engines beside `refusing` that run a model, fastest first.

    Args:
        config: transformers config of the model.
        refusing: Engine to leave out.
        quantization: Number format that the engines must run.
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
    """Return a hint that names the engines which run a model that `refusing` does not."""
    if engines := other_engines(config, refusing, quantization):
        return "use " + " or ".join(f"--engine {engine}" for engine in engines)
    if engines := other_engines(config, refusing):
        return f"no engine runs it in {quantization}: use --engine {engines[0]} in another format"
    if method := _method(config):
        package = needed_package(method)
        needed = f", or install {package} and use --engine transformers" if package else ""
        return f"give the unquantized model{needed}"
    return "use a model of another family"


def instead_for_folder(folder: Path, refusing: str, quantization: str = "auto") -> str:
    """Return `instead_of` for a Hugging Face folder; no engine if its config is unreadable."""
    config = config_of(folder)
    if config is None:
        return "correct its config.json, or copy or fetch the model again"
    return instead_of(config, refusing, quantization)


def engines_of_folder(folder: Path, refusing: str, quantization: str) -> tuple[str, ...]:
    """Return `other_engines` for a Hugging Face folder; () if its config is unreadable."""
    config = config_of(folder)
    return () if config is None else other_engines(config, refusing, quantization)


def config_of(place: Path) -> Any:
    """Return the transformers config of a folder or file, None if transformers cannot read it."""
    try:
        if place.is_dir():
            return read_config(place)
        import transformers

        with quiet_transformers():
            return transformers.AutoConfig.from_pretrained(
                place, local_files_only=True, trust_remote_code=False
            )
    except Exception:  # noqa: BLE001 - another check reports what is wrong with it
        return None


def _method(config: Any) -> str:
    return quantization_method(getattr(config, "quantization_config", None))


def transformers_refusal(config: Any) -> str | None:
    """Return what transformers cannot run of a model of a known family, None if it runs it."""
    method = _method(config)
    if method and not runs_on_transformers(method):
        return f"checkpoints quantized with {method}"
    try:
        window = attention_window(config.get_text_config())
    except Exception:  # noqa: BLE001 - several text models, or windows per layer
        return None
    if window == 1:  # its cache then keeps all tokens
        return "attention windows of one token"
    return None


def packed_refusal(config: Any) -> str | None:
    """Return what the packed engine does not support of a model, None if it runs the model."""
    family = str(config.model_type)
    if family not in PACKED_FAMILIES:
        return f"models of family {family!r}, only {', '.join(PACKED_FAMILIES)}"
    if _method(config) not in ("", OWN_METHOD):
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
    """Return the inner size of the MLP."""
    if config.model_type == "gpt2":
        return int(config.n_inner or 4 * config.n_embd)
    return int(config.intermediate_size)


def _llama_like_refusal(family: str, config: Any) -> str | None:
    rope_type = _rope_type(config)
    if rope_type not in PACKED_ROPE_TYPES:
        return f"rotary positions of type {rope_type!r}, only {', '.join(PACKED_ROPE_TYPES)}"
    if config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        return "partial rotary embeddings"
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
        return "GPT-2 attention scaled by another factor than 1/sqrt(head size)"
    if getattr(config, "add_cross_attention", False):
        return "GPT-2 with cross-attention"
    return None


def ctranslate2_refusal(config: Any) -> str | None:
    """Return what CTranslate2 does not support of a model, None if it runs the model.

    A model with an attention window is refused, because prompts longer than the window are.
    """
    family = str(config.model_type)
    if family not in CTRANSLATE2_FAMILIES:
        return f"{family} models"
    if _method(config):
        return "checkpoints that are quantized already"
    rope_type = _rope_type(config)
    if getattr(config, "rope_parameters", None) and rope_type not in _CTRANSLATE2_ROPE_TYPES:
        return f"rotary positions of type {rope_type!r}"
    if family in PACKED_LLAMA_LIKE:
        partial = config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0
        if partial or config.hidden_act != "silu":
            return f"{family} models with partial rotary embeddings or another activation than silu"
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
    """Return the attention window of some layer if it is shorter than the context, else 0 (tokens).

    Args:
        text: transformers config of a text model.
    """
    window = getattr(text, "sliding_window", None) or 0
    context = getattr(text, "max_position_embeddings", None) or 0
    if text.model_type in ("llama", "gemma"):  # these ignore the setting
        return 0
    kinds = getattr(text, "layer_types", None)
    if text.model_type != "mistral" and kinds and "sliding_attention" not in kinds:
        return 0
    return window if window < context else 0


def _rope_type(config: Any) -> str:
    held = getattr(config, "rope_parameters", None) or {}
    return str(held.get("rope_type", "one for each kind of layer" if held else "default"))
