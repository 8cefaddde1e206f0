"""Rotated checkpoints compute the same logits without outlier channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from packhorse.engines.packed import PackedEngine, read_architecture
from packhorse.engines.packed.checkpoint_tensors import CheckpointTensors, RotatedTensors
from packhorse.engines.packed.memory import weight_bytes
from packhorse.engines.packed.weights import load_weights
from packhorse.errors import ModelError
from random_models import FAMILIES, saved

IDS = torch.arange(1, 60)[None]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gpt2"])
def test_a_rotated_model_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    model = saved(FAMILIES[name], tmp_path)
    expected = model(IDS).logits
    rotated = RotatedTensors(tmp_path, read_architecture(tmp_path))
    head = rotated.head()
    model.model.embed_tokens.weight.copy_(rotated.embeddings())
    model.model.norm.weight.fill_(1)
    for number, layer in enumerate(model.model.layers):
        layer.input_layernorm.weight.fill_(1)
        layer.post_attention_layernorm.weight.fill_(1)
        for part, module in (
            ("query", layer.self_attn.q_proj), ("key", layer.self_attn.k_proj),
            ("value", layer.self_attn.v_proj), ("output", layer.self_attn.o_proj),
            ("gate", layer.mlp.gate_proj), ("up", layer.mlp.up_proj),
            ("down", layer.mlp.down_proj),
        ):  # fmt: skip
            weight, bias = rotated.projection(number, part)
            module.weight.copy_(weight)
            if module.bias is not None:
                module.bias.copy_(bias)
    model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    changed = (model(IDS).logits - expected).abs().max() / expected.abs().max()
    assert 0 < changed < 1e-4


def test_an_outlier_channel_is_spread(tmp_path: Path) -> None:
    model = saved(FAMILIES["llama"], tmp_path)
    model.model.embed_tokens.weight[:, 5] *= 100
    model.save_pretrained(tmp_path)
    built = read_architecture(tmp_path)
    before = CheckpointTensors(tmp_path, built).embeddings().abs().amax(0)
    after = RotatedTensors(tmp_path, built).embeddings().abs().amax(0)
    assert before.max() / before.median() > 50
    assert after.max() / after.median() < 2


def logits(folder: Path, quantization: str = "float32") -> np.ndarray[Any, Any]:
    engine = PackedEngine(
        folder, end_ids=(), max_context=128, quantization=quantization, threads=1, max_num_seqs=8,
        max_num_batched_tokens=32,
    )  # fmt: skip
    found = engine.logits_after(tuple(IDS[0].tolist()), 40)
    engine.close()
    return found


def with_head(folder: Path, *, equal: bool) -> Any:
    """Save a checkpoint with a head although its config ties it; return its transformers model."""
    saved(FAMILIES["llama, biases, own head size, tied"], folder)
    weights = load_file(folder / "model.safetensors")
    head = weights["model.embed_tokens.weight"].clone()
    weights["lm_head.weight"] = head if equal else head.flip(0)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return transformers.AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize(("quantization", "off"), [("float32", 2e-5), ("int8", 0.1)])
def test_a_stored_head_of_a_config_that_ties_it(
    quantization: str, off: float, equal: bool, tmp_path: Path
) -> None:
    expected = with_head(tmp_path, equal=equal)(IDS).logits[0, -40:].numpy()
    largest = float(np.abs(expected).max())
    assert logits(tmp_path, quantization) == pytest.approx(expected, abs=off * largest)


def test_the_memory_of_an_untied_head_is_counted(tmp_path: Path) -> None:
    found = []
    for equal in (True, False):
        with_head(tmp_path, equal=equal)
        engine = PackedEngine(tmp_path, end_ids=(), max_context=128, threads=1, max_num_seqs=8)
        found.append(engine.capabilities.model_bytes)
        engine.close()
    built = read_architecture(tmp_path)
    assert found[0] == weight_bytes(built, quantized=False)
    assert found[1] - found[0] == 4 * built.vocabulary * built.hidden


def test_weights_do_not_change_with_their_file(tmp_path: Path) -> None:
    """They do not keep the file in memory either."""
    saved(FAMILIES["llama"], tmp_path)
    weights = load_weights(tmp_path, read_architecture(tmp_path), quantized=False)
    before = weights.embeddings.copy(), weights.layers[1].down.weight.clone()
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as opened:
        opened.write(b"\7" * file.stat().st_size)
    assert np.array_equal(weights.embeddings, before[0])
    assert torch.equal(weights.layers[1].down.weight, before[1])


def pickled(folder: Path, **options: Any) -> Path:
    """Save the model of a folder as a .bin file."""
    saved(FAMILIES["llama"], folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin", **options)
    return folder / "pytorch_model.bin"


def test_pickles_in_the_old_format_are_read(tmp_path: Path) -> None:
    found = []
    for old in (False, True):
        pickled(tmp_path, _use_new_zipfile_serialization=not old)
        found.append(logits(tmp_path))
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize("old", [False, True])
def test_damaged_pickles_are_a_model_error(tmp_path: Path, old: bool) -> None:
    file = pickled(tmp_path, _use_new_zipfile_serialization=not old)
    whole = file.read_bytes()
    for content in (whole[:-3000], whole[:4000], b"no pickle at all" * 500):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=r"pytorch_model\.bin cannot be read: .") as refused:
            logits(tmp_path)
        assert "again" in refused.value.hint
        assert "\n" not in str(refused.value)
    torch.save([torch.zeros(3)], file)
    with pytest.raises(ModelError, match="holds no weights by name"):
        logits(tmp_path)
