"""Small random models of every family that can be folded, gains and biases random too."""

from __future__ import annotations

import random
from typing import Any

import torch

from packhorse.quantization import methods
from packhorse.quantization.recipe import CalibrationRow

VOCAB_SIZE = 200
SIZES: dict[str, int] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

GPT2_SIZES = {"vocab_size": VOCAB_SIZE, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128}
FAMILIES = {
    name: methods.FAMILIES[name]
    for name in ("llama", "qwen3", "gpt2", "phi3", "granite", "gemma2", "olmo2", "nemotron")
}
"""Families of every form, and the methods that support each."""


def random_model(family: str, *, seed: int = 0, tied: bool = False, **changes: Any) -> Any:
    """A float32 model without gradients whose logits are far from even."""
    import transformers

    own = {"qwen3": {"head_dim": 16}, "gemma2": {"head_dim": 16, "sliding_window": 9}}
    sizes = GPT2_SIZES if family == "gpt2" else SIZES
    named = {"tie_word_embeddings": tied, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 0}
    settings = {**sizes, **named, **own.get(family, {}), **changes}
    config: Any = transformers.AutoConfig.for_model(family, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        builder: Any = transformers.AutoModelForCausalLM
        model = builder.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                std = 1.0 if any(part in name for part in ("embed", "wte", "wpe")) else 0.25
                torch.nn.init.normal_(parameter, std=std)
            elif "bias" in name:
                torch.nn.init.normal_(parameter, std=0.3)
            else:
                torch.nn.init.uniform_(parameter, 0.3, 2.0)
    return model.eval().requires_grad_(False)


def random_rows(count: int, seed: int = 0, answers: bool = True) -> list[CalibrationRow]:
    draw = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCAB_SIZE) for _ in range(draw.randint(low, high)))

    return [CalibrationRow(ids(3, 30), ids(1, 12) if answers else ()) for _ in range(count)]


@torch.no_grad()
def logits(model: Any, rows: list[CalibrationRow]) -> list[torch.Tensor]:
    return [model(torch.tensor([row.inputs])).logits[0] for row in rows]


def largest_change(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """Largest difference of a logit, relative to the largest logit."""
    changes = [(a - b).abs().max() for a, b in zip(before, after, strict=True)]
    return float(max(changes) / max(a.abs().max() for a in before))
