"""Which engines a hint names: only those that run the model, in the requested format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from ctranslate2.converters.transformers import _MODEL_LOADERS

from packhorse.errors import PackhorseError
from packhorse.models.checkpoint import open_checkpoint
from packhorse.models.convert import convert_checkpoint
from packhorse.models.engine_support import (
    CTRANSLATE2_FAMILIES,
    PACKED_FAMILIES,
    ctranslate2_refusal,
    instead_of,
    other_engines,
    packed_refusal,
)
from packhorse.models.prepare import prepare
from random_models import LLAMA3, SIZES, YARN, saved

KNOWN = {**SIZES, "vocab_size": 300, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
GPT2_LIKE = {"vocab_size": 300, "n_embd": 48, "n_layer": 2, "n_head": 3, "n_positions": 128}
SETTINGS: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": 300, "hidden_size": 48, "n_layer": 2, "n_head": 3},
    "codegen": {**GPT2_LIKE, "n_head": 4, "rotary_dim": 4},
    "gptj": {**GPT2_LIKE, "rotary_dim": 4},
    "gpt2": GPT2_LIKE,
    "gpt_bigcode": GPT2_LIKE,
    "gemma": {**KNOWN, "head_dim": 12},
    "mistral": {**KNOWN, "sliding_window": None},
    "opt": {**KNOWN, "ffn_dim": 96, "word_embed_proj_dim": 48, "pad_token_id": 1},
}
NOT_CONVERTED = {"phi": {}, "phi3": {"pad_token_id": 0}, "gpt_neox": {}, "mpt": {}, "olmo2": {}}


def config_of(family: str, **more: Any) -> Any:
    known = SETTINGS.get(family, KNOWN)
    return transformers.AutoConfig.for_model(family, **{**known, **more})


@pytest.mark.parametrize("family", CTRANSLATE2_FAMILIES)
def test_families_that_are_recommended_can_be_converted(family: str, tmp_path: Path) -> None:
    config = config_of(family)
    assert ctranslate2_refusal(config) is None
    saved(config, tmp_path)
    (tmp_path / "converted").mkdir()
    convert_checkpoint(open_checkpoint(tmp_path), "float32", tmp_path / "converted")


@pytest.mark.parametrize("family", transformers.CONFIG_MAPPING)
def test_ctranslate2_is_named_for_families_with_a_converter_alone(family: str) -> None:
    """Of all that transformers knows, whether or not a config can be made without settings."""
    try:
        config = transformers.AutoConfig.for_model(family)
    except Exception:  # noqa: BLE001 - a family that needs settings, or another library
        pytest.skip("its config needs settings")
    if ctranslate2_refusal(config) is None:
        assert type(config).__name__ in _MODEL_LOADERS
    if packed_refusal(config) is None:
        assert config.model_type in PACKED_FAMILIES
    hint = instead_of(config, "packed", "int8")
    assert ("ctranslate2" in hint) == (ctranslate2_refusal(config) is None)
    assert "--engine packed" not in hint


@pytest.mark.parametrize(
    ("config", "quantization", "packed", "ctranslate2"),
    [
        (config_of("llama"), "float32", ("ctranslate2", "transformers"),
         ("packed", "transformers")),
        (config_of("llama"), "int8", ("ctranslate2",), ("packed",)),
        (config_of("llama", rope_parameters=YARN), "auto", ("transformers",),
         ("packed", "transformers")),
        (config_of("llama", rope_parameters=LLAMA3), "bfloat16", ("ctranslate2", "transformers"),
         ("transformers",)),
        (config_of("mistral", sliding_window=11), "auto", ("transformers",),
         ("packed", "transformers")),
        (config_of("mistral", sliding_window=1), "auto", (), ("packed",)),
        (config_of("gpt2", scale_attn_weights=False), "auto", ("ctranslate2", "transformers"),
         ("transformers",)),
        (config_of("gpt_bigcode", multi_query=False), "auto", ("transformers",), ("transformers",)),
        (config_of("olmo"), "int8", (), ()),
        (config_of("llama", quantization_config={"quant_method": "hqq"}), "auto", (), ()),
    ],
)  # fmt: skip
def test_engines_that_run_a_model(
    config: Any, quantization: str, packed: tuple[str, ...], ctranslate2: tuple[str, ...]
) -> None:
    assert other_engines(config, "packed", quantization) == packed
    assert other_engines(config, "ctranslate2", quantization) == ctranslate2


def test_hints_where_no_engine_runs_it_so() -> None:
    olmo = instead_of(config_of("olmo"), "packed", "int8")
    assert olmo == "no engine runs it in int8: use --engine transformers in another format"
    held = config_of("llama", quantization_config={"quant_method": "awq"})
    hint = instead_of(held, "packed")
    assert hint.startswith("give the unquantized model, or install gptqmodel")


@pytest.mark.parametrize("family", NOT_CONVERTED)
def test_converters_that_do_not_work_are_not_named(family: str) -> None:
    assert ctranslate2_refusal(config_of(family, **NOT_CONVERTED[family])) is not None


def test_formats_are_named_with_an_engine_that_runs_the_model(tmp_path: Path) -> None:
    saved(config_of("olmo"), tmp_path)
    with pytest.raises(PackhorseError, match="does not run int8") as refused:
        prepare(str(tmp_path), engine="transformers", quantization="int8")
    assert "--engine" not in refused.value.hint
    saved(config_of("llama"), tmp_path)
    with pytest.raises(PackhorseError, match="does not run int8") as refused:
        prepare(str(tmp_path), engine="transformers", quantization="int8")
    assert "--engine ctranslate2" in refused.value.hint
