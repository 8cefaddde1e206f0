"""Settings of every decoder family that transformers runs, small enough to build in a second.

`FAMILIES` maps a name to a model type and what its config sets besides `COMMON`. Sliding windows
(`WINDOW`), attention chunks and trained lengths (`TRAINED`) are shorter than the prompts of
`decoder_models.PROMPT_LENGTHS`, so that what lies beyond them decides tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WINDOW = 12
TRAINED = 32
CONTEXT = 256
VOCABULARY = 88
"""A multiple of 8: CTranslate2's converter for OPT fills a vocabulary up to one."""
Settings = dict[str, Any]

COMMON: Settings = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
"""Given to every config that has these names; configs that lack one do not get it."""


@dataclass(frozen=True, slots=True)
class Family:
    """One model to build.

    settings: of its config, before those of `COMMON`. tokens_named: the tokenizer has tokens for
    beginning, padding and unknown text. unused_ids: rows of the vocabulary that no token of the
    tokenizer has. stored_as: the number format of the checkpoint. cached: whether `generate` keeps
    keys and values when it says what is right.
    """

    model_type: str
    settings: Settings = field(default_factory=dict)
    tokens_named: bool = True
    unused_ids: int = 0
    stored_as: str = "float32"
    cached: bool = True


def rotation(kind: str, **more: Any) -> Settings:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


def longrope(pairs: int, **more: Any) -> Settings:
    """Rotations that change beyond the trained length, for heads with `pairs` rotated pairs."""
    short = [1.0 + 0.1 * pair for pair in range(pairs)]
    long = [2.0 + 2.0 * pair for pair in range(pairs)]
    changing = rotation("longrope", short_factor=short, long_factor=long, **more)
    return {"original_max_position_embeddings": TRAINED, "sliding_window": None, **changing}


def experts(**more: Any) -> Settings:
    return {"num_experts_per_tok": 2, "moe_intermediate_size": 32, **more}


YARN = rotation("yarn", factor=8.0, original_max_position_embeddings=TRAINED)
LLAMA3 = rotation(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=TRAINED,
)
GPT: Settings = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
GEMMA: Settings = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": WINDOW}
GEMMA4: Settings = {
    "head_dim": 32,
    "global_head_dim": 32,
    "sliding_window": WINDOW,
    "num_hidden_layers": 6,
    "hidden_size_per_layer_input": 0,
}
PER_LAYER: Settings = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCABULARY}
ALTERNATING = ["sliding_attention", "full_attention"]
LATENT: Settings = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
DEEPSEEK = experts(
    **LATENT,
    n_routed_experts=4,
    n_shared_experts=1,
    first_k_dense_replace=1,
    n_group=1,
    topk_group=1,
)
DELTA: Settings = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 16,
    "num_hidden_layers": 4,
}
MAMBA2: Settings = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
}
SLIDING: Settings = {"sliding_window": WINDOW}
HEAD: Settings = {"head_dim": 16}
GRANITE: Settings = {
    "embedding_multiplier": 6.0,
    "logits_scaling": 4.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.1,
}
CONVOLUTIONS: Settings = {
    "num_hidden_layers": 4,
    "layer_types": ["conv", "conv", "full_attention", "conv"],
}
EXPERTS4: Settings = {"num_local_experts": 4, "num_experts_per_tok": 2}
INDEXED: Settings = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 16}
LIGHTNING: Settings = {
    "head_dim": 16,
    "block_size": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MPT: Settings = {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT}
OPT: Settings = {"ffn_dim": 128, "word_embed_proj_dim": 64}


def named(entries: dict[str, tuple[str, Settings]], **facts: Any) -> dict[str, Family]:
    return {name: Family(kind, settings, **facts) for name, (kind, settings) in entries.items()}


SUPPORTED = named(
    {
        "llama": ("llama", {}),
        "llama tied": ("llama", {"tie_word_embeddings": True}),
        "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
        "llama own head size": ("llama", {"head_dim": 20}),
        "llama head size 10": ("llama", {"head_dim": 10}),
        "llama one key head": ("llama", {"num_key_value_heads": 1}),
        "llama large epsilon": ("llama", {"rms_norm_eps": 0.5}),
        "llama theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 100}}),
        "llama gelu": ("llama", {"hidden_act": "gelu"}),
        "llama hidden 72": ("llama", {"hidden_size": 72}),
        "llama linear": ("llama", rotation("linear", factor=4.0)),
        "llama dynamic": (
            "llama",
            {"max_position_embeddings": TRAINED, **rotation("dynamic", factor=8.0)},
        ),
        "llama yarn": ("llama", YARN),
        "llama yarn attention factor": (
            "llama",
            rotation(
                "yarn",
                factor=8.0,
                original_max_position_embeddings=TRAINED,
                attention_factor=1.4,
                beta_fast=16.0,
                beta_slow=2.0,
            ),
        ),
        "llama yarn trained length": ("llama", {**YARN, "max_position_embeddings": TRAINED}),
        "llama llama3": ("llama", LLAMA3),
        "llama longrope": ("llama", longrope(8)),
        "llama partial rotation": ("llama", rotation("default", partial_rotary_factor=0.5)),
        "mistral": ("mistral", {"sliding_window": None}),
        "mistral window": ("mistral", {"sliding_window": WINDOW}),
        "mistral window 64": ("mistral", {"sliding_window": 64}),
        "mistral own head size": ("mistral", {"head_dim": 32, "sliding_window": None}),
        "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        "mixtral window": ("mixtral", {"num_local_experts": 4, "sliding_window": WINDOW}),
        "qwen2": ("qwen2", {}),
        "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
        "qwen2 window": (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        ),
        "qwen2 yarn": ("qwen2", YARN),
        "qwen3": ("qwen3", {"head_dim": 32}),
        "qwen3 biases": ("qwen3", {"head_dim": 16, "attention_bias": True}),
        "qwen3 window": (
            "qwen3",
            {
                "head_dim": 16,
                "use_sliding_window": True,
                "sliding_window": WINDOW,
                "max_window_layers": 1,
            },
        ),
        "gemma": ("gemma", {"head_dim": 32}),
        "gemma2": ("gemma2", GEMMA),
        "gemma2 no cap": ("gemma2", {**GEMMA, "attn_logit_softcapping": None}),
        "gemma2 no cap, no window": (
            "gemma2",
            {**GEMMA, "attn_logit_softcapping": None, "sliding_window": 512},
        ),
        "gemma3": ("gemma3_text", {**GEMMA, "num_hidden_layers": 6}),
        "gemma3 query scale": (
            "gemma3_text",
            {**GEMMA, "query_pre_attn_scalar": 9, "layer_types": ALTERNATING},
        ),
        "gemma3 linear": (
            "gemma3_text",
            {
                **GEMMA,
                "layer_types": ALTERNATING,
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                    "full_attention": {
                        "rope_type": "linear",
                        "factor": 8.0,
                        "rope_theta": 1000000.0,
                    },
                },
            },
        ),
        "gemma4": ("gemma4_text", GEMMA4),
        "gemma4 per-layer embeddings": ("gemma4_text", {**GEMMA4, **PER_LAYER}),
        "gemma4 keys as values": (
            "gemma4_text",
            {
                **GEMMA4,
                "head_dim": 16,
                "num_global_key_value_heads": 1,
                "attention_k_eq_v": True,
                "final_logit_softcapping": 30.0,
            },
        ),
        "gemma4 experts": (
            "gemma4_text",
            {**GEMMA4, **experts(enable_moe_block=True, num_experts=4, top_k_experts=2)},
        ),
        "gemma4 shared keys": (
            "gemma4_text",
            {
                **GEMMA4,
                **PER_LAYER,
                "head_dim": 16,
                "num_kv_shared_layers": 2,
                "layer_types": ALTERNATING * 3,
            },
        ),
        "gpt2": ("gpt2", GPT),
        "gpt2 untied": ("gpt2", {**GPT, "tie_word_embeddings": False}),
        "gpt2 gelu": ("gpt2", {**GPT, "activation_function": "gelu"}),
        "gpt2 inner size": ("gpt2", {**GPT, "n_inner": 96}),
        "gpt2 large epsilon": ("gpt2", {**GPT, "layer_norm_epsilon": 0.5}),
        "gpt2 scale by layer": ("gpt2", {**GPT, "scale_attn_by_inverse_layer_idx": True}),
        "gpt2 no scale": ("gpt2", {**GPT, "scale_attn_weights": False}),
        "gpt_bigcode": ("gpt_bigcode", GPT),
        "gpt_bigcode multi-head": ("gpt_bigcode", {**GPT, "multi_query": False}),
        "gptj": ("gptj", {**GPT, "rotary_dim": 8}),
        "gptj large epsilon": ("gptj", {**GPT, "rotary_dim": 8, "layer_norm_epsilon": 0.5}),
        "codegen": ("codegen", {**GPT, "rotary_dim": 8}),
        "gpt_neox": ("gpt_neox", {}),
        "gpt_neox sequential": ("gpt_neox", {"use_parallel_residual": False}),
        "gpt_neox full rotation": ("gpt_neox", rotation("default", partial_rotary_factor=1.0)),
        "bloom": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
        "bloom residual after norm": (
            "bloom",
            {
                "hidden_size": 64,
                "n_layer": 2,
                "n_head": 4,
                "apply_residual_connection_post_layernorm": True,
            },
        ),
        "bloom large epsilon": (
            "bloom",
            {"hidden_size": 64, "n_layer": 2, "n_head": 4, "layer_norm_epsilon": 0.5},
        ),
        "opt": ("opt", OPT),
        "opt norm after": ("opt", {**OPT, "do_layer_norm_before": False}),
        "opt projected": (
            "opt",
            {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 32},
        ),
        "opt gelu": ("opt", {**OPT, "activation_function": "gelu"}),
        "opt no biases": ("opt", {**OPT, "enable_bias": False}),
        "opt plain norms": ("opt", {**OPT, "layer_norm_elementwise_affine": False}),
        "falcon 7b": (
            "falcon",
            {"multi_query": True, "parallel_attn": True, "new_decoder_architecture": False},
        ),
        "falcon 40b": ("falcon", {"num_kv_heads": 2, "new_decoder_architecture": True}),
        "falcon rw": (
            "falcon",
            {
                "alibi": True,
                "multi_query": False,
                "parallel_attn": False,
                "bias": True,
                "new_decoder_architecture": False,
            },
        ),
        "mpt": ("mpt", MPT),
        "mpt clip": ("mpt", {**MPT, "attn_config": {"clip_qkv": 0.5}}),
        "mpt steep": ("mpt", {**MPT, "attn_config": {"alibi_bias_max": 16}}),
        "mpt softmax scale": ("mpt", {**MPT, "attn_config": {"softmax_scale": 0.05}}),
        "phi": ("phi", {}),
        "phi head norms": ("phi", {"qk_layernorm": True, "num_key_value_heads": 4}),
        "phi3": ("phi3", {"sliding_window": None}),
        "phi3 window": ("phi3", {"sliding_window": WINDOW}),
        "phi3 longrope": ("phi3", longrope(8)),
        "phi4-mini": (
            "phi3",
            {**longrope(6, partial_rotary_factor=0.75), "tie_word_embeddings": True},
        ),
    }
)
"""Those that run, or seem to run, on CTranslate2 or packed, and those whose lengths need care on
transformers."""

UNNAMED = {
    f"{name}, no bos or unk": Family(
        SUPPORTED[name].model_type, SUPPORTED[name].settings, tokens_named=False
    )
    for name in (
        "llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2", "gptj", "codegen", "gpt_bigcode",
        "bloom", "opt", "falcon 7b", "mpt", "gemma3", "gemma4",
    )
}  # fmt: skip

WINDOW_1 = {"mistral window 1": Family("mistral", {"sliding_window": 1}, cached=False)}
"""transformers keeps all keys where it should keep none, so `generate` is right without a cache."""

STORED = {
    "llama stored in bfloat16": Family("llama", stored_as="bfloat16"),
    "qwen2 stored in float16": Family("qwen2", stored_as="float16"),
    "gemma3 stored in bfloat16": Family("gemma3_text", GEMMA, stored_as="bfloat16"),
    "llama unused ids": Family("llama", unused_ids=20),
    "gpt2 unused ids": Family("gpt2", GPT, unused_ids=20),
}

SUITE = (
    "llama", "llama tied", "llama biases", "llama own head size", "llama one key head",
    "llama large epsilon", "llama dynamic", "llama yarn", "llama llama3", "llama longrope",
    "mistral window", "qwen2 window", "qwen3", "gemma", "gemma2", "gemma2 no cap", "gemma3",
    "gemma3 query scale", "gemma4", "gemma4 per-layer embeddings", "gemma4 experts", "gpt2",
    "gpt2 large epsilon", "gpt2 scale by layer", "gpt_bigcode", "gptj", "codegen", "bloom",
    "bloom residual after norm", "opt", "opt projected", "falcon 7b", "falcon rw", "mpt",
    "mpt clip", "mpt softmax scale", "phi3 longrope", "phi4-mini", "llama4", "deepseek_v32",
    "doge", "mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "llama, no bos or unk",
    "bloom, no bos or unk", "gpt2, no bos or unk", "llama stored in bfloat16", "llama unused ids",
)  # fmt: skip
"""Names of the families that the test suite runs."""
