"""Random models of every family the packed engine runs, small, with every option a config has."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers

from tiny_models import ENDOFTEXT, tiny_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**SIZES),
    "llama, biases, own head size, tied": transformers.LlamaConfig(
        **SIZES, attention_bias=True, mlp_bias=True, head_dim=20, tie_word_embeddings=True
    ),
    "llama 3": transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama, yarn": transformers.LlamaConfig(**SIZES, rope_parameters=YARN),
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=11),
    "qwen2": transformers.Qwen2Config(**SIZES),
    "qwen2, some layers reach back less": transformers.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=32),
    "gpt2": transformers.GPT2Config(
        vocab_size=200, n_embd=48, n_layer=2, n_head=3, n_positions=128
    ),
}


def saved(config: Any, folder: Path) -> Any:
    """A model with random weights, gains and biases, written to `folder`."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        builder: Any = transformers.AutoModelForCausalLM
        model = builder.from_config(copy.deepcopy(config), attn_implementation="eager")
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=1.0 if "emb" in name else 0.2)
            elif "bias" in name:
                torch.nn.init.normal_(parameter, std=0.3)
            else:
                torch.nn.init.uniform_(parameter, 0.3, 2.0)
    model.save_pretrained(folder)
    tiny_tokenizer(folder, (ENDOFTEXT,))
    return model.eval().requires_grad_(False)
