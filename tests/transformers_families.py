"""Settings of the decoder families that only the transformers engine runs, and of models that no
engine runs; see `decoder_families`."""

from __future__ import annotations

from decoder_families import (
    ALTERNATING,
    CONTEXT,
    DEEPSEEK,
    DELTA,
    GEMMA,
    GPT,
    LATENT,
    MAMBA2,
    PER_LAYER,
    STORED,
    SUPPORTED,
    TRAINED,
    UNNAMED,
    WINDOW,
    Family,
    Settings,
    _experts,
    _longrope,
    _named,
    _rope,
)

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
LIGHTNING: Settings = {
    "head_dim": 16,
    "block_size": 8,
    "layer_types": ["linear_attention", "full_attention"],
}

OTHERS = _named(
    {
        "afmoe": (
            "afmoe",
            {
                **_experts(num_experts=4, num_shared_experts=1, global_attn_every_n_layers=2),
                **HEAD,
                **SLIDING,
            },
        ),
        "apertus": ("apertus", {}),
        "arcee": ("arcee", {}),
        "axk1": ("axk1", {**DEEPSEEK}),
        "bamba": ("bamba", {"num_hidden_layers": 3, "attn_layer_indices": [1], **MAMBA2}),
        "biogpt": ("biogpt", {}),
        "bitnet": ("bitnet", {}),
        "cohere": ("cohere", {"use_qk_norm": False}),
        "cohere head norms": ("cohere", {"use_qk_norm": True, "logit_scale": 0.3}),
        "cohere2": ("cohere2", {**SLIDING, "num_hidden_layers": 4}),
        "cohere2_moe": (
            "cohere2_moe",
            {**SLIDING, **HEAD, "num_hidden_layers": 4, "num_experts": 4},
        ),
        "cpmant": ("cpmant", {"dim_head": 16, "dim_ff": 128, "prompt_length": 4}),
        "ctrl": ("ctrl", {**GPT, "dff": 128}),
        "cwm": ("cwm", {**SLIDING, **HEAD}),
        "dbrx": (
            "dbrx",
            {
                "d_model": 64,
                "n_heads": 4,
                "n_layers": 2,
                "max_seq_len": CONTEXT,
                "attn_config": {"kv_n_heads": 2, "clip_qkv": 1.0, "rope_theta": 10000.0},
                "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
            },
        ),
        "deepseek_v2": ("deepseek_v2", {**DEEPSEEK, "q_lora_rank": None}),
        "deepseek_v3": ("deepseek_v3", DEEPSEEK),
        "deepseek_v3 yarn": (
            "deepseek_v3",
            {
                **DEEPSEEK,
                **_rope(
                    "yarn",
                    factor=8.0,
                    original_max_position_embeddings=TRAINED,
                    mscale=1.0,
                    mscale_all_dim=1.0,
                ),
            },
        ),
        "deepseek_v32": (
            "deepseek_v32",
            {**DEEPSEEK, "index_topk": 16, "index_head_dim": 16, "index_n_heads": 2},
        ),
        "diffllama": ("diffllama", HEAD),
        "doge": ("doge", {"keep_window_size": 16}),
        "dots1": ("dots1", {**DEEPSEEK, "num_key_value_heads": 2, **SLIDING}),
        "ernie4_5": ("ernie4_5", HEAD),
        "ernie4_5_moe": (
            "ernie4_5_moe",
            {"moe_intermediate_size": 32, "moe_k": 2, "moe_num_experts": 4},
        ),
        "exaone4": (
            "exaone4",
            {**SLIDING, "num_hidden_layers": 4, "sliding_window_pattern": 4},
        ),
        "exaone_moe": (
            "exaone_moe",
            {
                **_experts(num_experts=4, n_group=1, topk_group=1),
                **SLIDING,
                "num_hidden_layers": 4,
            },
        ),
        "falcon_h1": (
            "falcon_h1",
            {**MAMBA2, "mamba_d_ssm": 64, "mamba_n_heads": 4, "key_multiplier": 0.5},
        ),
        "flex_olmo": ("flex_olmo", {"num_experts": 4, "num_experts_per_tok": 2}),
        "gemma3n": (
            "gemma3n_text",
            {
                **SLIDING,
                **HEAD,
                **PER_LAYER,
                "num_hidden_layers": 5,
                "num_kv_shared_layers": 2,
                "laurel_rank": 8,
                "activation_sparsity_pattern": [0.0] * 5,
                "layer_types": [
                    "sliding_attention", "full_attention", "sliding_attention",
                    "sliding_attention", "full_attention",
                ],
            },
        ),
        "glm": ("glm", HEAD),
        "glm4": ("glm4", HEAD),
        "glm4_moe": ("glm4_moe", {**DEEPSEEK, **HEAD, "num_key_value_heads": 2}),
        "glm4_moe_lite": ("glm4_moe_lite", DEEPSEEK),
        "gpt_neo": (
            "gpt_neo",
            {
                "num_layers": 2,
                "num_heads": 4,
                "attention_types": [[["global", "local"], 1]],
                "window_size": WINDOW,
            },
        ),
        "gpt_neox_japanese": ("gpt_neox_japanese", {"intermediate_multiple_size": 2}),
        "gpt_oss": ("gpt_oss", {**EXPERTS4, **HEAD, **SLIDING}),
        "gpt_oss window 1": ("gpt_oss", {**EXPERTS4, **HEAD, "sliding_window": 1}),
        "granite": ("granite", GRANITE),
        "granite_swa": ("granite_swa", {**GRANITE, **SLIDING, "layer_types": ALTERNATING}),
        "granitemoe": ("granitemoe", {**GRANITE, **EXPERTS4}),
        "granitemoeshared": (
            "granitemoeshared",
            {**GRANITE, **EXPERTS4, "shared_intermediate_size": 64},
        ),
        "granitemoehybrid": (
            "granitemoehybrid",
            {
                **EXPERTS4,
                **MAMBA2,
                "num_hidden_layers": 4,
                "layer_types": ["mamba", "mamba", "attention", "mamba"],
                "shared_intermediate_size": 64,
            },
        ),
        "granitemoehybrid dense": (
            "granitemoehybrid",
            {
                **MAMBA2,
                "num_local_experts": 0,
                "num_experts_per_tok": 0,
                "layer_types": ["attention", "attention"],
                "position_embedding_type": "rope",
                "shared_intermediate_size": 64,
            },
        ),
        "helium": ("helium", HEAD),
        "hunyuan dense": ("hunyuan_v1_dense", HEAD),
        "hunyuan experts": ("hunyuan_v1_moe", {**HEAD, "num_experts": 4, "moe_topk": 2}),
        "hy_v3": ("hy_v3", {**_experts(num_experts=4), **HEAD}),
        "hyperclovax": ("hyperclovax", {**GRANITE, **HEAD}),
        "internlm3": ("internlm3", {}),
        "iquestcoder": ("iquestcoder", HEAD),
        "jais2": ("jais2", {}),
        "jamba": (
            "jamba",
            {
                "num_hidden_layers": 4,
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "num_experts": 2,
                "use_mamba_kernels": False,
                "mamba_d_state": 8,
            },
        ),
        "jetmoe": ("jetmoe", {**EXPERTS4, "kv_channels": 16}),
        "laguna": (
            "laguna",
            {
                **_experts(num_experts=4, shared_expert_intermediate_size=32),
                **HEAD,
                **SLIDING,
                "layer_types": ALTERNATING,
            },
        ),
        "lfm2": ("lfm2", CONVOLUTIONS),
        "lfm2_moe": ("lfm2_moe", _experts(num_experts=4, num_dense_layers=1, **CONVOLUTIONS)),
        "lfm3": ("lfm3", {**HEAD, **SLIDING, "layer_types": ["conv", "full_attention"]}),
        "llama4": (
            "llama4_text",
            {
                **HEAD,
                "num_local_experts": 4,
                "intermediate_size_mlp": 128,
                "attention_chunk_size": WINDOW,
                "num_hidden_layers": 4,
                "floor_scale": 16,
            },
        ),
        "longcat_flash": (
            "longcat_flash",
            {
                **LATENT,
                "head_dim": 8,
                "num_layers": 2,
                "ffn_hidden_size": 64,
                "moe_topk": 2,
                "n_routed_experts": 4,
                "zero_expert_num": 2,
                "expert_ffn_hidden_size": 32,
            },
        ),
        "mellum": ("mellum", {}),
        "mimo_v2_flash": (
            "mimo_v2_flash",
            {**_experts(n_routed_experts=4), **SLIDING, "head_dim": 16, "v_head_dim": 16},
        ),
        "minicpm3": ("minicpm3", LATENT),
        "minimax": ("minimax", {**EXPERTS4, **LIGHTNING}),
        "minimax_m2": ("minimax_m2", {**EXPERTS4, **HEAD}),
        "ministral": ("ministral", {**SLIDING, **HEAD}),
        "ministral3": (
            "ministral3",
            {
                **HEAD,
                **_rope(
                    "yarn",
                    factor=8.0,
                    original_max_position_embeddings=TRAINED,
                    mscale=1.0,
                    mscale_all_dim=1.0,
                    llama_4_scaling_beta=0.1,
                ),
            },
        ),
        "modernbert decoder": (
            "modernbert-decoder",
            {"num_hidden_layers": 4, "local_attention": 2 * WINDOW, "global_attn_every_n_layers": 3},
        ),
        "nanochat": ("nanochat", {}),
        "nemotron": ("nemotron", HEAD),
        "nemotron_h": (
            "nemotron_h",
            {
                **HEAD,
                "mamba_num_heads": 8,
                "mamba_head_dim": 16,
                "n_groups": 1,
                "ssm_state_size": 8,
                "num_hidden_layers": 4,
            },
        ),
        "olmo": ("olmo", {}),
        "olmo clip": ("olmo", {"clip_qkv": 0.5}),
        "olmo2": ("olmo2", {}),
        "olmo3": ("olmo3", {**SLIDING, "num_hidden_layers": 4}),
        "olmo_hybrid": (
            "olmo_hybrid",
            {
                "linear_num_key_heads": 4,
                "linear_num_value_heads": 4,
                "linear_key_head_dim": 16,
                "linear_value_head_dim": 16,
                "layer_types": ["linear_attention", "full_attention"],
            },
        ),
        "olmoe": ("olmoe", _experts(num_experts=4, clip_qkv=1.0)),
        "openai-gpt": ("openai-gpt", GPT),
        "persimmon": ("persimmon", {"num_key_value_heads": 4}),
        "phimoe": ("phimoe", {"num_local_experts": 4, "sliding_window": None}),
        "phimoe longrope": (
            "phimoe",
            {"num_local_experts": 4, **_longrope(8, short_mscale=1.1, long_mscale=1.3)},
        ),
        "qwen2_moe": (
            "qwen2_moe",
            _experts(num_experts=4, shared_expert_intermediate_size=64),
        ),
        "qwen3_moe": ("qwen3_moe", _experts(num_experts=4, **HEAD)),
        "qwen3_next": (
            "qwen3_next",
            _experts(num_experts=4, shared_expert_intermediate_size=64, **DELTA),
        ),
        "qwen3_5": ("qwen3_5_text", DELTA),
        "qwen3_5 experts": (
            "qwen3_5_moe_text",
            _experts(num_experts=4, shared_expert_intermediate_size=32, **DELTA),
        ),
        "seed_oss": ("seed_oss", HEAD),
        "smollm3": ("smollm3", {"num_hidden_layers": 4}),
        "smollm3 window": (
            "smollm3",
            {
                **SLIDING,
                "use_sliding_window": True,
                "no_rope_layers": [1, 0],
                "layer_types": ALTERNATING,
            },
        ),
        "solar_open": ("solar_open", {**DEEPSEEK, **HEAD, "num_key_value_heads": 2}),
        "stablelm": ("stablelm", {"use_qkv_bias": True}),
        "stablelm parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
        "starcoder2": ("starcoder2", SLIDING),
        "vaultgemma": ("vaultgemma", GEMMA),
        "xglm": ("xglm", {"d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4}),
        "xlstm": ("xlstm", {"num_heads": 4, "num_blocks": 2}),
        "youtu": ("youtu", LATENT),
        "zamba": (
            "zamba",
            {
                "num_hidden_layers": 4,
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "use_mamba_kernels": False,
                "num_key_value_heads": 4,
                "mamba_dt_rank": 8,
            },
        ),
        "zamba2": (
            "zamba2",
            {
                "num_hidden_layers": 4,
                "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
                "num_key_value_heads": 4,
                "mamba_d_state": 8,
                "mamba_headdim": 16,
                "use_mamba_kernels": False,
                "adapter_rank": 4,
            },
        ),
        "zaya": ("zaya", {"num_experts": 4, "moe_intermediate_size": 32, **HEAD, "router_hidden_size": 16}),
    }
)

ENCODER_DECODER: Settings = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "decoder_start_token_id": 0,
}
TRANSLATORS = _named(
    {
        "t5": (
            "t5",
            {"d_model": 64, "d_ff": 128, "num_layers": 2, "d_kv": 16, "decoder_start_token_id": 0},
        ),
        "bart": ("bart", ENCODER_DECODER),
        "mbart": ("mbart", ENCODER_DECODER),
        "m2m_100": ("m2m_100", ENCODER_DECODER),
        "marian": ("marian", ENCODER_DECODER),
        "pegasus": ("pegasus", ENCODER_DECODER),
    }
)
"""Models with an encoder: every engine must refuse them."""

FAMILIES: dict[str, Family] = {**SUPPORTED, **UNNAMED, **STORED, **OTHERS, **TRANSLATORS}
SUITE = {name: family for name, family in FAMILIES.items() if family.supported}
