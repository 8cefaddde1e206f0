"""Every family compared with transformers, and families that are rejected."""

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
from random_models import FAMILIES, SIZES, YARN, saved

IDS = tuple(np.random.default_rng(0).integers(0, 200, 90).tolist())


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = saved(FAMILIES[name], tmp_path)
    engine = PackedEngine(
        tmp_path, end_ids=(), max_context=128, threads=1, max_num_seqs=8, max_num_batched_tokens=32
    )
    found = engine.logits_after(IDS, 40)
    engine.close()
    expected = model(torch.tensor([IDS])).logits[0, -40:].numpy()
    assert found == pytest.approx(expected, abs=2e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt_neox"}, "models of family 'gpt_neox'"),
        ({"hidden_act": "gelu"}, "the activation 'gelu' in a llama model"),
        ({"rope_parameters": {**YARN, "rope_type": "dynamic"}}, "rotary positions of type"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
    ],
)
def test_unsupported_models_are_rejected_with_engines_that_run_them(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = {**transformers.LlamaConfig(**SIZES).to_dict(), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match=said) as refused:
        read_architecture(tmp_path)
    assert "--engine transformers" in str(refused.value.hint)


def test_weights_that_do_not_match_their_config_are_rejected(tmp_path: Path) -> None:
    saved(FAMILIES["llama"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"lacks the weights layers\.2\."):
        PackedEngine(tmp_path, end_ids=(), max_context=128)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 1}))
    with pytest.raises(ModelError, match="not"):
        PackedEngine(tmp_path, end_ids=(), max_context=128)
