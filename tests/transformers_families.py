"""Settings of the dense families that only the transformers engine runs, of encoder-decoders, which
no engine runs, and all families together: `FAMILIES`."""

from __future__ import annotations

from decoder_families import (
    ALTERNATING,
    GEMMA,
    GPT,
    GRANITE,
    HEAD,
    LATENT,
    PER_LAYER,
    SLIDING,
    STORED,
    SUPPORTED,
    TRAINED,
    UNNAMED,
    WINDOW,
    WINDOW_1,
    Family,
    Settings,
    named,
    rotation,
)
from expert_families import EXPERTS
from recurrent_families import RECURRENT

DENSE = named(
    {
        "apertus": ("apertus", {}),
        "arcee": ("arcee", {}),
        "bert decoder": ("bert", {"is_decoder": True}),
        "biogpt": ("biogpt", {}),
        "bitnet": ("bitnet", {}),
        "cohere": ("cohere", {"use_qk_norm": False}),
        "cohere head norms": ("cohere", {"use_qk_norm": True, "logit_scale": 0.3}),
        "cohere2": ("cohere2", {**SLIDING, "num_hidden_layers": 4}),
        "cpmant": ("cpmant", {"dim_head": 16, "dim_ff": 128, "prompt_length": 4}),
        "ctrl": ("ctrl", {**GPT, "dff": 128}),
        "cwm": ("cwm", {**SLIDING, **HEAD}),
        "diffllama": ("diffllama", HEAD),
        "doge": ("doge", {"keep_window_size": 16, "num_experts": 64}),
        "ernie4_5": ("ernie4_5", HEAD),
        "exaone4": (
            "exaone4",
            {**SLIDING, "num_hidden_layers": 4, "sliding_window_pattern": 4},
        ),
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
                    "sliding_attention",
                    "full_attention",
                    "sliding_attention",
                    "sliding_attention",
                    "full_attention",
                ],
            },
        ),
        "glm": ("glm", HEAD),
        "glm4": ("glm4", HEAD),
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
        "granite": ("granite", GRANITE),
        "granite 4": (
            "granitemoehybrid",
            {
                **GRANITE,
                "num_local_experts": 0,
                "shared_intermediate_size": 96,
                "layer_types": ["attention"] * 2,
                "position_embedding_type": "rope",
                "tie_word_embeddings": True,
            },
        ),
        "granite_swa": ("granite_swa", {**GRANITE, **SLIDING, "layer_types": ALTERNATING}),
        "helium": ("helium", HEAD),
        "hunyuan dense": ("hunyuan_v1_dense", HEAD),
        "hyperclovax": ("hyperclovax", {**GRANITE, **HEAD}),
        "internlm3": ("internlm3", {}),
        "iquestcoder": ("iquestcoder", HEAD),
        "jais2": ("jais2", {}),
        "mellum": ("mellum", {}),
        "minicpm3": ("minicpm3", LATENT),
        "ministral": ("ministral", {**SLIDING, **HEAD}),
        "ministral3": (
            "ministral3",
            {
                **HEAD,
                **rotation(
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
            {
                "num_hidden_layers": 4,
                "local_attention": 2 * WINDOW,
                "global_attn_every_n_layers": 3,
            },
        ),
        "nanochat": ("nanochat", {}),
        "nemotron": ("nemotron", HEAD),
        "olmo": ("olmo", {}),
        "olmo clip": ("olmo", {"clip_qkv": 0.5}),
        "olmo2": ("olmo2", {}),
        "olmo3": ("olmo3", {**SLIDING, "num_hidden_layers": 4}),
        "openai-gpt": ("openai-gpt", GPT),
        "persimmon": ("persimmon", {"num_key_value_heads": 4}),
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
        "stablelm": ("stablelm", {"use_qkv_bias": True}),
        "stablelm parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
        "starcoder2": ("starcoder2", SLIDING),
        "vaultgemma": ("vaultgemma", GEMMA),
        "xglm": ("xglm", {"d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4}),
        "youtu": ("youtu", LATENT),
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
TRANSLATORS = named(
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

FAMILIES: dict[str, Family] = {
    **SUPPORTED,
    **UNNAMED,
    **STORED,
    **WINDOW_1,
    **RECURRENT,
    **DENSE,
    **EXPERTS,
    **TRANSLATORS,
}
