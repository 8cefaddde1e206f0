"""The decoder families and the settings that their descriptions read.

docs/how-to/add-a-model-family.md adds one step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from packhorse.decoders import describers
from packhorse.decoders.description import Decoder
from packhorse.decoders.llama_like import UnsupportedError

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
    if getattr(config, "is_heterogeneous", False):
        raise UnsupportedError("settings of single layers")
    known = _WITHOUT_EFFECT | _READ | set(family.settings)
    for name in changed_settings(config):
        if name not in known:
            value = getattr(config, name)
            raise UnsupportedError(f"{name} {value!r} in a {config.model_type} model")


def changed_settings(config: Any) -> list[str]:
    """Return the settings of a family that are not at their default, except those of all configs.

    Args:
        config: A config of transformers, or one that knows its `changed_settings`.
    """
    known: list[str] | None = getattr(config, "changed_settings", None)
    if known is not None:
        return known
    from transformers import PreTrainedConfig

    common = PreTrainedConfig.__dataclass_fields__
    fields = getattr(type(config), "__dataclass_fields__", {})
    return [
        name
        for name, field in fields.items()
        if name not in common
        and not isinstance(field.default, AttributeError)
        and getattr(config, name, field.default) != field.default
    ]


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
    "llama": Family(describers.llama, _LLAMA_BIASES),
    "mistral": Family(describers.mistral, ("sliding_window",)),
    "qwen2": Family(describers.qwen2, _QWEN_WINDOWS),
    "qwen3": Family(describers.qwen3, ("attention_bias", *_QWEN_WINDOWS)),
    "gpt2": Family(
        describers.gpt2,
        (
            "activation_function", "add_cross_attention", "layer_norm_epsilon", "n_embd", "n_head",
            "n_inner", "n_layer", "n_positions", "scale_attn_by_inverse_layer_idx",
            "scale_attn_weights", "summary_activation", "summary_first_dropout",
            "summary_proj_to_labels", "summary_type", "summary_use_proj",
        ),
        SMOOTHING_METHODS,
    ),
    "smollm3": Family(
        describers.smollm3,
        (
            "no_rope_layer_interval", "no_rope_layers", "use_sliding_window", *_LLAMA_BIASES,
            *_WINDOWS,
        ),
    ),
    "phi3": Family(describers.phi3, ("original_max_position_embeddings", "sliding_window")),
    "granite": Family(describers.granite, (*_LLAMA_BIASES, *_MULTIPLIERS)),
    "granitemoehybrid": Family(
        describers.granite_hybrid,
        (
            "attention_bias", "layer_types", "mamba_chunk_size", "mamba_conv_bias", "mamba_d_conv",
            "mamba_d_head", "mamba_d_state", "mamba_expand", "mamba_n_groups", "mamba_n_heads",
            "mamba_proj_bias", "num_experts_per_tok", "num_local_experts", "output_router_logits",
            "position_embedding_type", "router_aux_loss_coef", "shared_intermediate_size",
            "time_step_limit", *_MULTIPLIERS,
        ),
    ),
    "hyperclovax": Family(describers.hyperclovax, ("use_post_norm", *_LLAMA_BIASES, *_MULTIPLIERS)),
    "internlm3": Family(describers.llama, _LLAMA_BIASES),
    "iquestcoder": Family(describers.llama, _LLAMA_BIASES),
    "seed_oss": Family(describers.seed_oss, ("attention_out_bias", *_LLAMA_BIASES)),
    "ernie4_5": Family(describers.ernie, ("use_bias",)),
    "helium": Family(describers.helium, _LLAMA_BIASES),
    "glm": Family(describers.glm, ("attention_bias",)),
    "glm4": Family(describers.glm4, ("attention_bias",)),
    "ministral": Family(describers.ministral, _WINDOWS),
    "ministral3": Family(describers.ministral3, ("sliding_window",)),
    "cwm": Family(describers.ministral, _WINDOWS),
    "starcoder2": Family(
        describers.starcoder2, ("norm_epsilon", "sliding_window", "use_bias"), SMOOTHING_METHODS
    ),
    "stablelm": Family(
        describers.stablelm,
        ("layer_norm_eps", "qk_layernorm", "use_parallel_residual", "use_qkv_bias"),
        SMOOTHING_METHODS,
    ),
    "arcee": Family(describers.ungated, _LLAMA_BIASES),
    "nemotron": Family(describers.nemotron, ("norm_eps", *_LLAMA_BIASES), SMOOTHING_METHODS),
    "gemma": Family(describers.gemma, ("attention_bias", "use_bidirectional_attention")),
    "gemma2": Family(describers.gemma2, _GEMMA_SETTINGS),
    "gemma3_text": Family(describers.gemma3, _GEMMA_SETTINGS),
    "qwen3_moe": Family(
        describers.qwen3_moe,
        (
            "attention_bias", "decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size",
            "norm_topk_prob", "num_experts", "sliding_window", "use_sliding_window", *_ROUTING,
        ),
        (),
    ),
    "olmoe": Family(
        describers.olmoe, ("attention_bias", "norm_topk_prob", "num_experts", *_ROUTING), ()
    ),
    "mixtral": Family(
        describers.mixtral,
        ("num_local_experts", "router_jitter_noise", "sliding_window", *_ROUTING),
        (),
    ),
    "granitemoe": Family(
        describers.granitemoe, ("attention_bias", "num_local_experts", *_MULTIPLIERS, *_ROUTING), ()
    ),
    "vaultgemma": Family(describers.vaultgemma, _GEMMA_SETTINGS),
    "olmo2": Family(describers.olmo2, ("attention_bias",)),
    "olmo3": Family(describers.olmo3, ("attention_bias", *_WINDOWS)),
    "exaone4": Family(describers.exaone4, ("sliding_window_pattern", *_WINDOWS)),
}  # fmt: skip
"""Families by transformers' model type."""
