"""Tiny random models of families that compute batches in a way of their own.

Weights are drawn so that attention, positions, states and norms all decide tokens: with the
library's own initialization a model repeats its last token whatever it has seen before.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers

from packhorse.data import Prompt, SamplingParams
from packhorse.models.quiet import quiet_transformers

VOCABULARY = 200
TRAINED = 24
"""Tokens of training, where positions depend on it."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
FEW: dict[str, Any] = {
    name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")
}
ENDS: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": TRAINED,
    "short_factor": [1.0] * 8,
    "long_factor": [1.5 + each for each in range(8)],
    "factor": 10.0,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0}


def config_of(name: str) -> Any:
    made: dict[str, Any] = {
        "llama": lambda: transformers.LlamaConfig(**SIZES),
        "mamba": lambda: transformers.MambaConfig(**FEW, **ENDS, state_size=8),
        "mamba2": lambda: transformers.Mamba2Config(
            **FEW, **ENDS, state_size=8, head_dim=16, num_heads=8, n_groups=1
        ),
        "falcon_mamba": lambda: transformers.FalconMambaConfig(**FEW, **ENDS, state_size=8),
        "rwkv": lambda: transformers.RwkvConfig(
            **FEW, **ENDS, attention_hidden_size=64, context_length=256
        ),
        "recurrent_gemma": lambda: transformers.RecurrentGemmaConfig(
            **{**SIZES, "num_hidden_layers": 3}, lru_width=64, attention_window_size=12
        ),
        "phi3, longrope": lambda: transformers.Phi3Config(
            **SIZES, original_max_position_embeddings=TRAINED, rope_parameters=dict(LONGROPE)
        ),
        "llama, longrope": lambda: transformers.LlamaConfig(
            **SIZES, rope_parameters=dict(LONGROPE)
        ),
        "llama, dynamic": lambda: transformers.LlamaConfig(
            **{**SIZES, "max_position_embeddings": TRAINED}, rope_parameters=dict(DYNAMIC)
        ),
        "gpt_neo, window": lambda: transformers.GPTNeoConfig(
            **FEW,
            **ENDS,
            num_heads=4,
            num_layers=2,
            attention_types=[[["global", "local"], 1]],
            window_size=12,
        ),
        "llama4, chunks": lambda: transformers.Llama4TextConfig(
            **SIZES,
            num_local_experts=2,
            intermediate_size_mlp=128,
            head_dim=16,
            attention_chunk_size=12,
            no_rope_layers=[1, 0],
        ),
        "llama4, scale": lambda: transformers.Llama4TextConfig(
            **SIZES,
            num_local_experts=2,
            intermediate_size_mlp=128,
            head_dim=16,
            no_rope_layers=[1, 0],
            floor_scale=12,
            attn_scale=0.5,
        ),
        "doge": lambda: transformers.DogeConfig(**SIZES, keep_window_size=12, num_experts=64),
    }
    return made[name]()


def sharpen(model: Any) -> Any:
    """Draws all weights anew but for those that decay states."""
    generator = torch.Generator().manual_seed(0)
    embedded = {id(each.weight) for each in model.modules() if isinstance(each, torch.nn.Embedding)}
    kept = ("A_log", "D", "dt_bias", "time_decay", "time_first")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.rsplit(".", 1)[-1] in kept or "time_mix" in name:
                continue
            drawn = torch.randn(weight.shape, generator=generator)
            if id(weight) in embedded:
                weight.copy_(0.5 * drawn)
            elif weight.dim() >= 2:
                weight.copy_(1.3 * drawn / max(min(weight.shape[-2:]), 4) ** 0.5)
            else:
                weight.add_((0.2 if "norm" in name else 0.1) * drawn)
    return model


def sharpened(config: Any, folder: Path) -> Path:
    """A model of `config` in a folder."""
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(0)
        builder: Any = transformers.AutoModelForCausalLM
        sharpen(builder.from_config(config).eval()).save_pretrained(folder)
    return folder


def generated(folder: Path, prompts: list[Prompt]) -> dict[int, tuple[int, ...]]:
    """What `model.generate` makes of each prompt alone, in a model that has seen no other."""
    found = {}
    loader: Any = transformers.AutoModelForCausalLM
    with quiet_transformers():
        loaded = loader.from_pretrained(folder)
        for prompt in prompts:
            model = copy.deepcopy(loaded)
            ids = torch.tensor([prompt.token_ids])
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=prompt.decoding.max_new_tokens,
                eos_token_id=None,
                pad_token_id=0,
            )
            found[prompt.index] = tuple(output[0, ids.shape[1] :].tolist())
    return found


def prompts_of(*lengths: int, new: int = 9, shared: int = 0) -> list[Prompt]:
    """Random prompts of these lengths, of which the first `shared` tokens are the same."""
    generator = torch.Generator().manual_seed(3)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=generator).tolist())

    head = draw(shared)
    return [
        Prompt(index, (*head, *draw(length - shared)), SamplingParams(max_new_tokens=new))
        for index, length in enumerate(lengths)
    ]
