"""Settings of families with a state per row: state spaces, convolutions, linear attention."""

from __future__ import annotations

from decoder_families import (
    CONTEXT,
    CONVOLUTIONS,
    DEEPSEEK,
    DELTA,
    EXPERTS4,
    HEAD,
    LIGHTNING,
    MAMBA2,
    SLIDING,
    WINDOW,
    experts,
    named,
)

RECURRENT = named(
    {
        "bailing_hybrid": (
            "bailing_hybrid",
            {
                **DEEPSEEK,
                "num_experts": 4,
                "num_expert_group": 1,
                "num_experts_per_token": 2,
                "layer_group_size": 2,
                "linear_head_dim": 16,
                "linear_num_heads": 4,
                "num_nextn_predict_layers": 0,
            },
        ),
        "bamba": ("bamba", {"num_hidden_layers": 3, "attn_layer_indices": [1], **MAMBA2}),
        "falcon_h1": (
            "falcon_h1",
            {**MAMBA2, "mamba_d_ssm": 64, "mamba_n_heads": 4, "key_multiplier": 0.5},
        ),
        "falcon_mamba": ("falcon_mamba", {"state_size": 8}),
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
        "hrm": (
            "hrm_text",
            {
                **HEAD,
                "H_cycles": 1,
                "L_cycles": 1,
                "num_layers_per_stack": 1,
                "prefix_lm": False,
            },
        ),
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
        "kimi_linear": (
            "kimi_linear",
            {
                **DEEPSEEK,
                "num_experts": 4,
                "num_shared_experts": 1,
                "num_experts_per_token": 2,
                "linear_head_dim": 16,
                "linear_num_heads": 4,
                "layer_types": ["linear_attention", "full_attention"],
            },
        ),
        "lfm2": ("lfm2", CONVOLUTIONS),
        "lfm2_moe": ("lfm2_moe", experts(num_experts=4, num_dense_layers=1, **CONVOLUTIONS)),
        "lfm3": (
            "lfm3",
            {**HEAD, **SLIDING, "layer_types": ["conv", "sliding_attention"]},
        ),
        "mamba": ("mamba", {"state_size": 8}),
        "mamba2": ("mamba2", {"state_size": 8, "head_dim": 16, "num_heads": 8, "n_groups": 1}),
        "minimax": ("minimax", {**EXPERTS4, **LIGHTNING}),
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
        "qwen3_5": ("qwen3_5_text", DELTA),
        "qwen3_5 experts": (
            "qwen3_5_moe_text",
            experts(num_experts=4, shared_expert_intermediate_size=32, **DELTA),
        ),
        "qwen3_next": (
            "qwen3_next",
            experts(num_experts=4, shared_expert_intermediate_size=64, **DELTA),
        ),
        "recurrent_gemma": (
            "recurrent_gemma",
            {"num_hidden_layers": 3, "lru_width": 64, "attention_window_size": WINDOW},
        ),
        "rwkv": ("rwkv", {"attention_hidden_size": 64, "context_length": CONTEXT}),
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
    }
)
