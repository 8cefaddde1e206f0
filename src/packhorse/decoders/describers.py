"""How the transformers config of each family becomes a `Decoder`, by what differs from Llama."""

from __future__ import annotations

from typing import Any

from packhorse.decoders.description import GPT2_NAMES, Decoder
from packhorse.decoders.llama_like import (
    FULL,
    SLIDING,
    UnsupportedError,
    activation_of,
    attention_kinds,
    llama_biases,
    llama_like,
    one_window,
    rotations_by_kind,
    windows_by_kind,
)

_HEAD_NORMS = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
_FUSED_MLP = {"gate": "mlp.gate_up_proj", "up": "mlp.gate_up_proj"}


def llama(config: Any) -> Decoder:
    return llama_like(config, **llama_biases(config))


def mistral(config: Any) -> Decoder:
    return llama_like(config, windows=one_window(config))


def qwen2(config: Any) -> Decoder:
    return llama_like(config, qkv_bias=True, windows=windows_by_kind(config))


def qwen3(config: Any) -> Decoder:
    windows = windows_by_kind(config)
    return llama_like(config, names=_HEAD_NORMS, windows=windows, **llama_biases(config))


def gpt2(config: Any) -> Decoder:
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


def smollm3(config: Any) -> Decoder:
    rotated = zip(attention_kinds(config), config.no_rope_layers, strict=True)
    window = int(config.sliding_window or 0) if config.use_sliding_window else 0
    return llama_like(
        config,
        windows=tuple(window if kind == SLIDING else 0 for kind in attention_kinds(config)),
        rotations=tuple("" if rotates else None for _, rotates in rotated),
        **llama_biases(config),
    )


def phi3(config: Any) -> Decoder:
    fused = dict.fromkeys(("query", "key", "value"), "self_attn.qkv_proj")
    return llama_like(
        config, names={**fused, **_FUSED_MLP}, windows=one_window(config), partial_rotation=True
    )


def _multipliers(config: Any) -> dict[str, Any]:
    """Return the scale factors of Granite and its relatives."""
    return {
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "attention_scale": config.attention_multiplier,
        "logit_scale": 1 / config.logits_scaling,
    }


def granite(config: Any) -> Decoder:
    return llama_like(config, **llama_biases(config), **_multipliers(config))


def granite_hybrid(config: Any) -> Decoder:
    """Granite 4 without experts and without Mamba layers."""
    if config.num_local_experts:
        raise UnsupportedError("granitemoehybrid models with experts")
    if set(config.layer_types) - set(FULL):
        raise UnsupportedError("granitemoehybrid models with Mamba layers")
    fused = dict.fromkeys(("gate", "up"), "shared_mlp.input_linear")
    rotates = config.position_embedding_type == "rope"
    return llama_like(
        config,
        names={**fused, "down": "shared_mlp.output_linear"},
        inner=config.shared_intermediate_size,
        rotations=("" if rotates else None,) * config.num_hidden_layers,
        **llama_biases(config),
        **_multipliers(config),
    )


def hyperclovax(config: Any) -> Decoder:
    post = {"attention_post_norm": "post_norm1", "mlp_post_norm": "post_norm2"}
    scales = {**_multipliers(config), "logit_scale": config.logits_scaling}
    names = post if config.use_post_norm else {}
    return llama_like(config, names=names, **llama_biases(config), **scales)


def seed_oss(config: Any) -> Decoder:
    return llama_like(config, **{**llama_biases(config), "output_bias": config.attention_out_bias})


def ernie(config: Any) -> Decoder:
    biases = dict.fromkeys(("qkv_bias", "output_bias", "mlp_bias"), config.use_bias)
    return llama_like(config, is_interleaved=True, **biases)


def helium(config: Any) -> Decoder:
    biases = {**llama_biases(config), "output_bias": False}
    return llama_like(config, is_interleaved=True, **biases)


def glm(config: Any) -> Decoder:
    return llama_like(
        config, names=_FUSED_MLP, is_interleaved=True, partial_rotation=True,
        qkv_bias=config.attention_bias,
    )  # fmt: skip


def glm4(config: Any) -> Decoder:
    post = {
        "attention_post_norm": "post_self_attn_layernorm", "mlp_post_norm": "post_mlp_layernorm",
    }  # fmt: skip
    return llama_like(
        config, names={**_FUSED_MLP, **post}, is_interleaved=True, partial_rotation=True,
        qkv_bias=config.attention_bias,
    )  # fmt: skip


def ministral(config: Any) -> Decoder:
    return llama_like(config, windows=windows_by_kind(config))


def ministral3(config: Any) -> Decoder:
    settings = config.rope_parameters
    beta = float(settings.get("llama_4_scaling_beta") or 0.0)
    length = int(settings.get("original_max_position_embeddings") or 0)
    return llama_like(config, windows=one_window(config), query_position_scale=(beta, length))


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


def qwen3_moe(config: Any) -> Decoder:
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        raise UnsupportedError("qwen3_moe models with layers without experts")
    window = int(config.sliding_window or 0) if config.use_sliding_window else 0
    biases = {"qkv_bias": config.attention_bias, "output_bias": config.attention_bias}
    names = {**_EXPERT_NAMES, **_HEAD_NORMS}
    experts = _experts(config, config.num_experts, config.moe_intermediate_size, names)
    return llama_like(config, windows=(window,) * config.num_hidden_layers, **biases, **experts)


def olmoe(config: Any) -> Decoder:
    names = {**_EXPERT_NAMES, **_HEAD_NORMS}
    experts = _experts(config, config.num_experts, config.intermediate_size, names)
    return llama_like(config, norms_whole_rows=True, **llama_biases(config), **experts)


def mixtral(config: Any) -> Decoder:
    place = "block_sparse_moe.experts.{}"
    names = {
        "gate": f"{place}.w1", "up": f"{place}.w3", "down": f"{place}.w2",
        "router": "block_sparse_moe.gate",
    }  # fmt: skip
    experts = _experts(config, config.num_local_experts, config.intermediate_size, names)
    return llama_like(config, windows=one_window(config), **experts)


def granitemoe(config: Any) -> Decoder:
    names = {
        **dict.fromkeys(("gate", "up"), "block_sparse_moe.input_linear"),
        "down": "block_sparse_moe.output_linear", "router": "block_sparse_moe.router.layer",
    }  # fmt: skip
    experts = _experts(config, config.num_local_experts, config.intermediate_size, names)
    return llama_like(config, **llama_biases(config), **_multipliers(config), **experts)


def starcoder2(config: Any) -> Decoder:
    biases = dict.fromkeys(("qkv_bias", "output_bias", "mlp_bias"), config.use_bias)
    return llama_like(
        config, names={"gate": "", "up": "mlp.c_fc", "down": "mlp.c_proj"},
        windows=one_window(config), is_gated=False, norm="layer", norm_bias=True,
        epsilon=config.norm_epsilon, **biases,
    )  # fmt: skip


def stablelm(config: Any) -> Decoder:
    if config.use_parallel_residual or config.qk_layernorm:
        raise UnsupportedError("stablelm models with parallel layers or norms of heads")
    return llama_like(
        config, norm="layer", norm_bias=True, epsilon=config.layer_norm_eps,
        qkv_bias=config.use_qkv_bias, partial_rotation=True,
    )  # fmt: skip


def ungated(config: Any) -> Decoder:
    """Arcee: Llama with one projection in place of gate and up."""
    return llama_like(config, names={"gate": ""}, is_gated=False, **llama_biases(config))


def nemotron(config: Any) -> Decoder:
    return llama_like(
        config, names={"gate": ""}, is_gated=False, norm="layer", norm_bias=True, norm_offset=1.0,
        epsilon=config.norm_eps, partial_rotation=True, **llama_biases(config),
    )  # fmt: skip


def gemma(config: Any, activation: str | None = None, **changes: Any) -> Decoder:
    if getattr(config, "use_bidirectional_attention", None):
        raise UnsupportedError("attention to later tokens")
    return llama_like(
        config, activation, norm_offset=1.0, embedding_scale=config.hidden_size**0.5,
        **llama_biases(config), **changes,
    )  # fmt: skip


_GEMMA_NORMS = {
    "attention_post_norm": "post_attention_layernorm", "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}  # fmt: skip


def gemma2(config: Any, **changes: Any) -> Decoder:
    names = {**_GEMMA_NORMS, **changes.pop("names", {})}
    return gemma(
        config,
        config.hidden_activation,
        names=names,
        windows=windows_by_kind(config),
        attention_scale=config.query_pre_attn_scalar**-0.5,
        logit_cap=config.final_logit_softcapping or 0.0,
        **{"attention_cap": config.attn_logit_softcapping or 0.0, **changes},
    )


def vaultgemma(config: Any) -> Decoder:
    return gemma2(config, names={"attention_post_norm": "", "mlp_post_norm": ""})


def gemma3(config: Any) -> Decoder:
    """Gemma 3; it ignores the bound of attention scores."""
    rotations = rotations_by_kind(config)
    return gemma2(config, names=_HEAD_NORMS, rotations=rotations, attention_cap=0.0)


_POST_NORMS = {
    "attention_norm": "", "attention_post_norm": "post_attention_layernorm", "mlp_norm": "",
    "mlp_post_norm": "post_feedforward_layernorm",
}  # fmt: skip


def olmo2(config: Any, **changes: Any) -> Decoder:
    names = {**_POST_NORMS, **_HEAD_NORMS}
    return llama_like(config, names=names, norms_whole_rows=True, **llama_biases(config), **changes)


def olmo3(config: Any) -> Decoder:
    rotations = rotations_by_kind(config)
    return olmo2(config, windows=windows_by_kind(config), rotations=rotations)


def exaone4(config: Any) -> Decoder:
    rotates = [config.sliding_window is None or kind == SLIDING for kind in attention_kinds(config)]
    return llama_like(
        config,
        names={**_POST_NORMS, **_HEAD_NORMS},
        windows=windows_by_kind(config),
        rotations=tuple("" if each else None for each in rotates),
    )
