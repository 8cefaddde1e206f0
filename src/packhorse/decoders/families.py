"""The decoder families: how each transformers config becomes a `Decoder`.

`llama_like` reads what most configs have in common; a family states what it does otherwise. See
docs/how-to/add-a-model-family.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from packhorse.decoders.description import GPT2_NAMES, LLAMA_NAMES, Activation, Decoder

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}
_SLIDING, _FULL = "sliding_attention", ("full_attention", "attention")
_HEAD_NORMS = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
_FUSED_MLP = {"gate": "mlp.gate_up_proj", "up": "mlp.gate_up_proj"}
ROTATION_METHODS = ("smooth", "rotate", "rotate-smooth")
SMOOTHING_METHODS = ("smooth",)

_WITHOUT_EFFECT = frozenset(
    (
        "attention_dropout", "attn_pdrop", "bos_token_id", "embd_pdrop", "embedding_dropout",
        "eos_token_id", "hidden_dropout", "initializer_range", "max_position_embeddings",
        "pad_token_id", "pretraining_tp", "reorder_and_upcast_attn", "resid_pdrop",
        "residual_dropout", "use_cache",
    )
)  # fmt: skip
_READ = frozenset(
    (
        "head_dim", "hidden_act", "hidden_size", "intermediate_size", "num_attention_heads",
        "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_parameters",
        "tie_word_embeddings", "vocab_size",
    )
)  # fmt: skip


class UnsupportedError(Exception):
    """A model has something that descriptions do not cover; the text names it."""


@dataclass(frozen=True, slots=True)
class Family:
    """One `model_type`.

    Attributes:
        describe: Returns the description of a config; raises UnsupportedError.
        settings: Config fields that `describe` reads beside those of all families. Another field
            with another value than its default is refused: it may change what is computed.
        methods: int8 preparation methods that apply, the best one last (`quantization.methods`);
            () if weights can only be rounded to nearest.
    """

    describe: Callable[[Any], Decoder]
    settings: tuple[str, ...] = ()
    methods: tuple[str, ...] = ROTATION_METHODS


def describe(config: Any) -> Decoder:
    """Return the description of a model by its transformers config.

    Raises:
        UnsupportedError: The family or a setting is not covered.
    """
    family = FAMILIES.get(str(config.model_type))
    if family is None:
        raise UnsupportedError(f"models of family {config.model_type!r}")
    _require_known_settings(config, family)
    return family.describe(config)


def refusal(config: Any) -> str | None:
    """Return what `describe` does not cover of a model, None if it covers the model."""
    try:
        describe(config)
    except UnsupportedError as error:
        return str(error)
    return None


def _require_known_settings(config: Any, family: Family) -> None:
    """Refuse settings that transformers knows and this module does not, unless at their default."""
    from transformers import PreTrainedConfig

    common = PreTrainedConfig.__dataclass_fields__
    fields = getattr(type(config), "__dataclass_fields__", {})
    known = _WITHOUT_EFFECT | _READ | set(family.settings)
    for name, field in fields.items():
        if name in common or name in known or isinstance(field.default, AttributeError):
            continue
        value = getattr(config, name, field.default)
        if value is not None and value != field.default:
            raise UnsupportedError(f"{name} {value!r} in a {config.model_type} model")


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


def _kinds(config: Any) -> tuple[str, ...]:
    """Return the attention kind of each layer; UnsupportedError for an unknown one."""
    kinds = tuple(map(str, config.layer_types))
    if strange := sorted(set(kinds).difference((_SLIDING, *_FULL))):
        raise UnsupportedError(f"layers of type {strange[0]!r}, only full and sliding attention")
    return kinds


def _one_window(config: Any) -> tuple[int, ...]:
    """Return the windows of a family in which the setting applies to every layer."""
    return (int(config.sliding_window or 0),) * int(config.num_hidden_layers)


def _windows_by_kind(config: Any) -> tuple[int, ...]:
    """Return the windows of a family with a kind of attention per layer."""
    window = int(config.sliding_window or 0)
    return tuple(window if kind == _SLIDING else 0 for kind in _kinds(config))


def _rotations_by_kind(config: Any) -> tuple[str, ...]:
    """Return the rotations of a family whose settings are by kind of attention."""
    return tuple(key if key in config.rope_parameters else "" for key in _kinds(config))


def _biases(config: Any) -> dict[str, Any]:
    """Return the biases of families with Llama's settings for them."""
    attention, mlp = config.attention_bias, getattr(config, "mlp_bias", False)
    return {"qkv_bias": attention, "output_bias": attention, "mlp_bias": mlp}


def _llama(config: Any) -> Decoder:
    return llama_like(config, **_biases(config))


def _mistral(config: Any) -> Decoder:
    return llama_like(config, windows=_one_window(config))


def _qwen2(config: Any) -> Decoder:
    return llama_like(config, qkv_bias=True, windows=_windows_by_kind(config))


def _qwen3(config: Any) -> Decoder:
    windows = _windows_by_kind(config)
    return llama_like(config, names=_HEAD_NORMS, windows=windows, **_biases(config))


def _gpt2(config: Any) -> Decoder:
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise UnsupportedError("GPT-2 attention scaled by another factor than 1/sqrt(head size)")
    if getattr(config, "add_cross_attention", False):
        raise UnsupportedError("GPT-2 with cross-attention")
    head_size = config.n_embd // config.n_head
    return Decoder(
        family="gpt2", config=config, layers=config.n_layer, hidden=config.n_embd,
        inner=config.n_inner or 4 * config.n_embd, heads=config.n_head, kv_heads=config.n_head,
        head_size=head_size, vocabulary=config.vocab_size, epsilon=config.layer_norm_epsilon,
        ties_head=config.tie_word_embeddings, names=GPT2_NAMES, is_transposed=True, qkv_bias=True,
        output_bias=True, mlp_bias=True, norm="layer", norm_bias=True,
        activation=activation_of(config, config.activation_function), is_gated=False,
        windows=(0,) * config.n_layer, rotations=(None,) * config.n_layer,
        positions=config.n_positions, attention_scale=head_size**-0.5,
    )  # fmt: skip


def _smollm3(config: Any) -> Decoder:
    kinds = zip(_kinds(config), config.no_rope_layers, strict=True)
    window = int(config.sliding_window or 0) if config.use_sliding_window else 0
    return llama_like(
        config,
        windows=tuple(window if kind == _SLIDING else 0 for kind in _kinds(config)),
        rotations=tuple("" if rotates else None for _, rotates in kinds),
        **_biases(config),
    )


def _phi3(config: Any) -> Decoder:
    fused = dict.fromkeys(("query", "key", "value"), "self_attn.qkv_proj")
    return llama_like(
        config, names={**fused, **_FUSED_MLP}, windows=_one_window(config), partial_rotation=True
    )


def _multipliers(config: Any) -> dict[str, Any]:
    """Return the scale factors of Granite and its relatives."""
    return {
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "attention_scale": config.attention_multiplier,
        "logit_scale": 1 / config.logits_scaling,
    }


def _granite(config: Any) -> Decoder:
    return llama_like(config, **_biases(config), **_multipliers(config))


def _granite_hybrid(config: Any) -> Decoder:
    """Granite 4 without experts and without Mamba layers."""
    if config.num_local_experts:
        raise UnsupportedError("granitemoehybrid models with experts")
    if set(config.layer_types) - set(_FULL):
        raise UnsupportedError("granitemoehybrid models with Mamba layers")
    fused = dict.fromkeys(("gate", "up"), "shared_mlp.input_linear")
    rotates = config.position_embedding_type == "rope"
    return llama_like(
        config,
        names={**fused, "down": "shared_mlp.output_linear"},
        inner=config.shared_intermediate_size,
        rotations=("" if rotates else None,) * config.num_hidden_layers,
        **_biases(config),
        **_multipliers(config),
    )


def _hyperclovax(config: Any) -> Decoder:
    post = {"attention_post_norm": "post_norm1", "mlp_post_norm": "post_norm2"}
    scales = {**_multipliers(config), "logit_scale": config.logits_scaling}
    names = post if config.use_post_norm else {}
    return llama_like(config, names=names, **_biases(config), **scales)


def _seed_oss(config: Any) -> Decoder:
    return llama_like(config, **{**_biases(config), "output_bias": config.attention_out_bias})


def _ernie(config: Any) -> Decoder:
    biases = dict.fromkeys(("qkv_bias", "output_bias", "mlp_bias"), config.use_bias)
    return llama_like(config, is_interleaved=True, **biases)


def _helium(config: Any) -> Decoder:
    biases = {**_biases(config), "output_bias": False}
    return llama_like(config, is_interleaved=True, **biases)


def _glm(config: Any) -> Decoder:
    return llama_like(
        config, names=_FUSED_MLP, is_interleaved=True, partial_rotation=True,
        qkv_bias=config.attention_bias,
    )  # fmt: skip


def _glm4(config: Any) -> Decoder:
    post = {
        "attention_post_norm": "post_self_attn_layernorm", "mlp_post_norm": "post_mlp_layernorm",
    }  # fmt: skip
    return llama_like(
        config, names={**_FUSED_MLP, **post}, is_interleaved=True, partial_rotation=True,
        qkv_bias=config.attention_bias,
    )  # fmt: skip


def _ministral(config: Any) -> Decoder:
    return llama_like(config, windows=_windows_by_kind(config))


def _ministral3(config: Any) -> Decoder:
    settings = config.rope_parameters
    beta = float(settings.get("llama_4_scaling_beta") or 0.0)
    length = int(settings.get("original_max_position_embeddings") or 0)
    return llama_like(config, windows=_one_window(config), query_position_scale=(beta, length))


def _experts(config: Any, count: int, inner: int, names: dict[str, str]) -> dict[str, Any]:
    """Return the description of experts in the place of each MLP."""
    return {
        "names": names, "experts": count, "inner": inner,
        "experts_per_token": config.num_experts_per_tok,
        "normalizes_experts": getattr(config, "norm_topk_prob", True),
    }  # fmt: skip


_EXPERT_NAMES = {
    "gate": "mlp.experts.{}.gate_proj", "up": "mlp.experts.{}.up_proj",
    "down": "mlp.experts.{}.down_proj", "router": "mlp.gate",
}  # fmt: skip


def _qwen3_moe(config: Any) -> Decoder:
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        raise UnsupportedError("qwen3_moe models with layers without experts")
    window = int(config.sliding_window or 0) if config.use_sliding_window else 0
    biases = {"qkv_bias": config.attention_bias, "output_bias": config.attention_bias}
    names = {**_EXPERT_NAMES, **_HEAD_NORMS}
    experts = _experts(config, config.num_experts, config.moe_intermediate_size, names)
    return llama_like(config, windows=(window,) * config.num_hidden_layers, **biases, **experts)


def _olmoe(config: Any) -> Decoder:
    names = {**_EXPERT_NAMES, **_HEAD_NORMS}
    experts = _experts(config, config.num_experts, config.intermediate_size, names)
    return llama_like(config, norms_whole_rows=True, **_biases(config), **experts)


def _mixtral(config: Any) -> Decoder:
    place = "block_sparse_moe.experts.{}"
    names = {
        "gate": f"{place}.w1", "up": f"{place}.w3", "down": f"{place}.w2",
        "router": "block_sparse_moe.gate",
    }  # fmt: skip
    experts = _experts(config, config.num_local_experts, config.intermediate_size, names)
    return llama_like(config, windows=_one_window(config), **experts)


def _granitemoe(config: Any) -> Decoder:
    names = {
        **dict.fromkeys(("gate", "up"), "block_sparse_moe.input_linear"),
        "down": "block_sparse_moe.output_linear", "router": "block_sparse_moe.router.layer",
    }  # fmt: skip
    experts = _experts(config, config.num_local_experts, config.intermediate_size, names)
    return llama_like(config, **_biases(config), **_multipliers(config), **experts)


def _starcoder2(config: Any) -> Decoder:
    biases = dict.fromkeys(("qkv_bias", "output_bias", "mlp_bias"), config.use_bias)
    return llama_like(
        config, names={"gate": "", "up": "mlp.c_fc", "down": "mlp.c_proj"},
        windows=_one_window(config), is_gated=False, norm="layer", norm_bias=True,
        epsilon=config.norm_epsilon, **biases,
    )  # fmt: skip


def _stablelm(config: Any) -> Decoder:
    if config.use_parallel_residual or config.qk_layernorm:
        raise UnsupportedError("stablelm models with parallel layers or norms of heads")
    return llama_like(
        config, norm="layer", norm_bias=True, epsilon=config.layer_norm_eps,
        qkv_bias=config.use_qkv_bias, partial_rotation=True,
    )  # fmt: skip


def _ungated(config: Any) -> Decoder:
    """Arcee: Llama with one projection in place of gate and up."""
    return llama_like(config, names={"gate": ""}, is_gated=False, **_biases(config))


def _nemotron(config: Any) -> Decoder:
    return llama_like(
        config, names={"gate": ""}, is_gated=False, norm="layer", norm_bias=True, norm_offset=1.0,
        epsilon=config.norm_eps, partial_rotation=True, **_biases(config),
    )  # fmt: skip


def _gemma(config: Any, activation: str | None = None, **changes: Any) -> Decoder:
    if getattr(config, "use_bidirectional_attention", None):
        raise UnsupportedError("attention to later tokens")
    return llama_like(
        config, activation, norm_offset=1.0, embedding_scale=config.hidden_size**0.5,
        **_biases(config), **changes,
    )  # fmt: skip


_GEMMA_NORMS = {
    "attention_post_norm": "post_attention_layernorm", "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}  # fmt: skip


def _gemma2(config: Any, **changes: Any) -> Decoder:
    names = {**_GEMMA_NORMS, **changes.pop("names", {})}
    return _gemma(
        config,
        config.hidden_activation,
        names=names,
        windows=_windows_by_kind(config),
        attention_scale=config.query_pre_attn_scalar**-0.5,
        logit_cap=config.final_logit_softcapping or 0.0,
        **{"attention_cap": config.attn_logit_softcapping or 0.0, **changes},
    )


def _vaultgemma(config: Any) -> Decoder:
    return _gemma2(config, names={"attention_post_norm": "", "mlp_post_norm": ""})


def _gemma3(config: Any) -> Decoder:
    """Gemma 3; it ignores the bound of attention scores."""
    rotations = _rotations_by_kind(config)
    return _gemma2(config, names=_HEAD_NORMS, rotations=rotations, attention_cap=0.0)


_POST_NORMS = {
    "attention_norm": "", "attention_post_norm": "post_attention_layernorm", "mlp_norm": "",
    "mlp_post_norm": "post_feedforward_layernorm",
}  # fmt: skip


def _olmo2(config: Any, **changes: Any) -> Decoder:
    names = {**_POST_NORMS, **_HEAD_NORMS}
    return llama_like(config, names=names, norms_whole_rows=True, **_biases(config), **changes)


def _olmo3(config: Any) -> Decoder:
    rotations = _rotations_by_kind(config)
    return _olmo2(config, windows=_windows_by_kind(config), rotations=rotations)


def _exaone4(config: Any) -> Decoder:
    rotates = [config.sliding_window is None or kind == _SLIDING for kind in _kinds(config)]
    return llama_like(
        config,
        names={**_POST_NORMS, **_HEAD_NORMS},
        windows=_windows_by_kind(config),
        rotations=tuple("" if each else None for each in rotates),
    )


_LLAMA_BIASES = ("attention_bias", "mlp_bias")
_MULTIPLIERS = (
    "attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier",
)  # fmt: skip
_WINDOWS = ("layer_types", "sliding_window")
_ROUTING = ("num_experts_per_tok", "output_router_logits", "router_aux_loss_coef")
_GEMMA_SETTINGS = (
    "attention_bias", "attn_logit_softcapping", "final_logit_softcapping", "hidden_activation",
    "query_pre_attn_scalar", "use_bidirectional_attention", *_WINDOWS,
)  # fmt: skip
_QWEN_WINDOWS = ("max_window_layers", "use_sliding_window", *_WINDOWS)
FAMILIES: Mapping[str, Family] = {
    "llama": Family(_llama, _LLAMA_BIASES),
    "mistral": Family(_mistral, ("sliding_window",)),
    "qwen2": Family(_qwen2, _QWEN_WINDOWS),
    "qwen3": Family(_qwen3, ("attention_bias", *_QWEN_WINDOWS)),
    "gpt2": Family(
        _gpt2,
        (
            "activation_function", "add_cross_attention", "layer_norm_epsilon", "n_embd", "n_head",
            "n_inner", "n_layer", "n_positions", "scale_attn_by_inverse_layer_idx",
            "scale_attn_weights", "summary_activation", "summary_first_dropout",
            "summary_proj_to_labels", "summary_type", "summary_use_proj",
        ),
        SMOOTHING_METHODS,
    ),
    "smollm3": Family(
        _smollm3,
        (
            "no_rope_layer_interval", "no_rope_layers", "use_sliding_window", *_LLAMA_BIASES,
            *_WINDOWS,
        ),
    ),
    "phi3": Family(_phi3, ("original_max_position_embeddings", "sliding_window")),
    "granite": Family(_granite, (*_LLAMA_BIASES, *_MULTIPLIERS)),
    "granitemoehybrid": Family(
        _granite_hybrid,
        (
            "attention_bias", "layer_types", "mamba_chunk_size", "mamba_conv_bias", "mamba_d_conv",
            "mamba_d_head", "mamba_d_state", "mamba_expand", "mamba_n_groups", "mamba_n_heads",
            "mamba_proj_bias", "num_experts_per_tok", "num_local_experts", "output_router_logits",
            "position_embedding_type", "router_aux_loss_coef", "shared_intermediate_size",
            "time_step_limit", *_MULTIPLIERS,
        ),
    ),
    "hyperclovax": Family(_hyperclovax, ("use_post_norm", *_LLAMA_BIASES, *_MULTIPLIERS)),
    "internlm3": Family(_llama, _LLAMA_BIASES),
    "iquestcoder": Family(_llama, _LLAMA_BIASES),
    "seed_oss": Family(_seed_oss, ("attention_out_bias", *_LLAMA_BIASES)),
    "ernie4_5": Family(_ernie, ("use_bias",)),
    "helium": Family(_helium, _LLAMA_BIASES),
    "glm": Family(_glm, ("attention_bias",)),
    "glm4": Family(_glm4, ("attention_bias",)),
    "ministral": Family(_ministral, _WINDOWS),
    "ministral3": Family(_ministral3, ("sliding_window",)),
    "cwm": Family(_ministral, _WINDOWS),
    "starcoder2": Family(
        _starcoder2, ("norm_epsilon", "sliding_window", "use_bias"), SMOOTHING_METHODS
    ),
    "stablelm": Family(
        _stablelm,
        ("layer_norm_eps", "qk_layernorm", "use_parallel_residual", "use_qkv_bias"),
        SMOOTHING_METHODS,
    ),
    "arcee": Family(_ungated, _LLAMA_BIASES),
    "nemotron": Family(_nemotron, ("norm_eps", *_LLAMA_BIASES), SMOOTHING_METHODS),
    "gemma": Family(_gemma, ("attention_bias", "use_bidirectional_attention")),
    "gemma2": Family(_gemma2, _GEMMA_SETTINGS),
    "gemma3_text": Family(_gemma3, _GEMMA_SETTINGS),
    "qwen3_moe": Family(
        _qwen3_moe,
        (
            "attention_bias", "decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size",
            "norm_topk_prob", "num_experts", "sliding_window", "use_sliding_window", *_ROUTING,
        ),
        (),
    ),
    "olmoe": Family(_olmoe, ("attention_bias", "norm_topk_prob", "num_experts", *_ROUTING), ()),
    "mixtral": Family(
        _mixtral, ("num_local_experts", "router_jitter_noise", "sliding_window", *_ROUTING), ()
    ),
    "granitemoe": Family(
        _granitemoe, ("attention_bias", "num_local_experts", *_MULTIPLIERS, *_ROUTING), ()
    ),
    "vaultgemma": Family(_vaultgemma, _GEMMA_SETTINGS),
    "olmo2": Family(_olmo2, ("attention_bias",)),
    "olmo3": Family(_olmo3, ("attention_bias", *_WINDOWS)),
    "exaone4": Family(_exaone4, ("sliding_window_pattern", *_WINDOWS)),
}  # fmt: skip
"""Families by transformers' model type."""
