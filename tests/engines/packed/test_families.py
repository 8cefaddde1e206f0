"""Every family, against transformers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from packhorse.engines.packed import PackedEngine, read_architecture
from packhorse.errors import EngineError, ModelError
from tiny_models import ENDOFTEXT, tiny_tokenizer

IDS = tuple(np.random.default_rng(0).integers(0, 200, 90).tolist())
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
        model = builder.from_config(config, attn_implementation="eager")
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


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = saved(FAMILIES[name], tmp_path)
    engine = PackedEngine(tmp_path, end_ids=(), max_context=128, threads=1, rows=8, step_tokens=32)
    found = engine.logits_after(IDS, 40)
    engine.close()
    expected = model(torch.tensor([IDS])).logits[0, -40:].numpy()
    assert found == pytest.approx(expected, abs=2e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt_neox"}, "models of family 'gpt_neox', only llama, mistral"),
        ({"hidden_act": "gelu"}, "the activation 'gelu' in a llama model"),
        ({"rope_parameters": {**YARN, "rope_type": "dynamic"}}, "rotary positions of type"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"intermediate_size": 100}, "inner sizes of 100, only multiples of 16"),
    ],
)
def test_what_it_cannot_run_is_refused_with_engines_that_may(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = {**transformers.LlamaConfig(**SIZES).to_dict(), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match=said) as refused:
        read_architecture(tmp_path)
    assert "--engine transformers" in str(refused.value.hint)


def test_weights_that_do_not_belong_to_their_config_are_refused(tmp_path: Path) -> None:
    saved(FAMILIES["llama"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"lacks the weights layers\.2\."):
        PackedEngine(tmp_path, end_ids=(), max_context=128)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 1}))
    with pytest.raises(ModelError, match="not"):
        PackedEngine(tmp_path, end_ids=(), max_context=128)
