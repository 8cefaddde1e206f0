"""Settings of families with experts."""

from __future__ import annotations

from decoder_families import (
    ALTERNATING,
    CONTEXT,
    DEEPSEEK,
    EXPERTS4,
    GRANITE,
    HEAD,
    INDEXED,
    LATENT,
    SLIDING,
    TRAINED,
    WINDOW,
    experts,
    longrope,
    named,
    rotation,
)

EXPERTS = named(
    {
        "afmoe": (
            "afmoe",
            {
                **experts(num_experts=4, num_shared_experts=1, global_attn_every_n_layers=2),
                **HEAD,
                **SLIDING,
            },
        ),
        "axk1": ("axk1", {**DEEPSEEK}),
        "axk2": ("axk2", {**DEEPSEEK, **INDEXED, "gated_norm_rank": 8}),
        "beam": (
            "beam",
            {
                **experts(num_experts=4, n_group=1, topk_group=1),
                **HEAD,
                **SLIDING,
                "num_hidden_layers": 4,
            },
        ),
        "cohere2_moe": (
            "cohere2_moe",
            {**SLIDING, **HEAD, "num_hidden_layers": 4, "num_experts": 4},
        ),
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
                **rotation(
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
            {**DEEPSEEK, "index_topk": 16, "index_head_dim": 16, "index_n_heads": 16},
        ),
        "deepseek_v4": (
            "deepseek_v4",
            {
                **experts(n_routed_experts=4, **INDEXED, **SLIDING),
                "head_dim": 32,
                "q_lora_rank": 24,
                "o_groups": 2,
                "o_lora_rank": 16,
                "num_hidden_layers": 3,
                "num_key_value_heads": 1,
                "num_nextn_predict_layers": 0,
                "partial_rotary_factor": 0.5,
                "qk_rope_head_dim": 16,
            },
        ),
        "dots1": ("dots1", {**DEEPSEEK, "num_key_value_heads": 2, **SLIDING}),
        "ernie4_5_moe": (
            "ernie4_5_moe",
            {"moe_intermediate_size": 32, "moe_k": 2, "moe_num_experts": 4},
        ),
        "exaone_moe": (
            "exaone_moe",
            {
                **experts(num_experts=4, n_group=1, topk_group=1),
                **SLIDING,
                "num_hidden_layers": 4,
            },
        ),
        "flex_olmo": ("flex_olmo", {"num_experts": 4, "num_experts_per_tok": 2}),
        "flint": (
            "flint",
            {
                **experts(num_experts=4, shared_expert_intermediate_size=32),
                **HEAD,
                **SLIDING,
                "mlp_only_layers": [0],
            },
        ),
        "glm4_moe": ("glm4_moe", {**DEEPSEEK, **HEAD, "num_key_value_heads": 2}),
        "glm4_moe_lite": ("glm4_moe_lite", DEEPSEEK),
        "glm_moe_dsa": ("glm_moe_dsa", {**DEEPSEEK, **INDEXED}),
        "gpt_oss": ("gpt_oss", {**EXPERTS4, **HEAD, **SLIDING}),
        "gpt_oss window 1": ("gpt_oss", {**EXPERTS4, **HEAD, "sliding_window": 1}),
        "granitemoe": ("granitemoe", {**GRANITE, **EXPERTS4}),
        "granitemoe_swa": (
            "granitemoe_swa",
            {**GRANITE, **EXPERTS4, **SLIDING, "layer_types": ALTERNATING},
        ),
        "granitemoeshared": (
            "granitemoeshared",
            {**GRANITE, **EXPERTS4, "shared_intermediate_size": 64},
        ),
        "hunyuan experts": ("hunyuan_v1_moe", {**HEAD, "num_experts": 4, "moe_topk": 2}),
        "hy_v3": ("hy_v3", {**experts(num_experts=4), **HEAD}),
        "hy_v4": ("hy_v4", {**DEEPSEEK, **INDEXED, "hc_mult": 2}),
        "inkling": (
            "inkling_text",
            {
                **experts(n_routed_experts=4, n_shared_experts=1),
                **HEAD,
                "swa_num_attention_heads": 4,
                "swa_num_key_value_heads": 2,
                "swa_head_dim": 16,
                "sliding_window_size": WINDOW,
                "d_rel": 8,
                "rel_extent": TRAINED,
                "num_hidden_layers": 4,
            },
        ),
        "inkling log scaling": (
            "inkling_text",
            {
                **experts(n_routed_experts=4, n_shared_experts=1),
                **HEAD,
                "swa_num_attention_heads": 4,
                "swa_num_key_value_heads": 2,
                "swa_head_dim": 16,
                "sliding_window_size": WINDOW,
                "d_rel": 8,
                "rel_extent": TRAINED,
                "log_scaling_n_floor": 16,
                "layer_types": ["hybrid_sliding", "hybrid"] * 2,
                "num_hidden_layers": 4,
            },
        ),
        "jetmoe": ("jetmoe", {**EXPERTS4, "kv_channels": 16}),
        "kolibri1": (
            "kolibri1",
            {
                **experts(num_local_experts=4, shared_expert_intermediate_size=32),
                **HEAD,
                **SLIDING,
            },
        ),
        "laguna": (
            "laguna",
            {
                **experts(num_experts=4, shared_expert_intermediate_size=32),
                **HEAD,
                **SLIDING,
                "layer_types": ALTERNATING,
            },
        ),
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
        "llama4 all rotated": (
            "llama4_text",
            {
                **HEAD,
                "num_local_experts": 4,
                "intermediate_size_mlp": 128,
                "attention_chunk_size": WINDOW,
                "no_rope_layers": [1, 1],
                "attn_temperature_tuning": False,
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
        "mimo_v2_flash": (
            "mimo_v2_flash",
            {**experts(n_routed_experts=4), **SLIDING, "head_dim": 16, "v_head_dim": 16},
        ),
        "minimax_m2": ("minimax_m2", {**EXPERTS4, **HEAD}),
        "minimax_m3": ("minimax_m3_vl_text", {**EXPERTS4, **HEAD}),
        "olmoe": ("olmoe", experts(num_experts=4)),
        "olmoe clip": ("olmoe", experts(num_experts=4, clip_qkv=1.0)),
        "phimoe": ("phimoe", {"num_local_experts": 4, "sliding_window": None}),
        "phimoe longrope": (
            "phimoe",
            {"num_local_experts": 4, **longrope(8, short_mscale=1.1, long_mscale=1.3)},
        ),
        "qwen2_moe": (
            "qwen2_moe",
            experts(num_experts=4, shared_expert_intermediate_size=64),
        ),
        "qwen3_moe window": (
            "qwen3_moe",
            experts(num_experts=8, **HEAD, **SLIDING, use_sliding_window=True, norm_topk_prob=True),
        ),
        "qwen3_moe": ("qwen3_moe", experts(num_experts=4, **HEAD)),
        "solar_open": ("solar_open", {**DEEPSEEK, **HEAD, "num_key_value_heads": 2}),
        "zaya": (
            "zaya",
            {"num_experts": 4, "moe_intermediate_size": 32, **HEAD, "router_hidden_size": 16},
        ),
    }
)
