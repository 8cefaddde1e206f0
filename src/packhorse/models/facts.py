"""What engines and planners need to know of a model before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.errors import ModelError, model_errors
from packhorse.json_files import read_object
from packhorse.models.ctranslate2_folder import (
    read_variables,
    vocabulary,
)
from packhorse.models.prepared import PreparedModel, Report

ASSUMED_CONTEXT = 2048
SANE_CONTEXT = 10_000_000
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes and ids of a model; 0 is a size that could not be found out.

    max_context: prompt and generated tokens of one row at most (tokens).
    eos_token_ids: any of these ends a text.
    """

    max_context: int
    eos_token_ids: tuple[int, ...]
    vocab_size: int


FAKE = ModelFacts(max_context=32_768, eos_token_ids=(), vocab_size=256)


def model_facts(prepared: PreparedModel, report: Report | None = None) -> ModelFacts:
    """The facts of a prepared model, from its Hugging Face config where there is one.

    A ready CTranslate2 folder without it is asked itself; a context that no file tells is
    assumed, and reported.
    """
    if prepared.kind == "fake":
        return FAKE
    with model_errors(f"{prepared.folder} cannot be used", "copy or fetch the model again"):
        return _facts(prepared, report)


def _facts(prepared: PreparedModel, report: Report | None) -> ModelFacts:
    config = _huggingface_config(prepared)
    if config is None:
        return _from_ctranslate2(prepared, report)
    generation = _optional(prepared.tokenizer_folder / "generation_config.json")
    text = config.get("text_config")
    described = {**config, **text} if isinstance(text, dict) else config
    return _from_config(prepared.tokenizer_folder, described, generation)


def _huggingface_config(prepared: PreparedModel) -> dict[str, Any] | None:
    for path in (prepared.folder / "hf_config.json", prepared.tokenizer_folder / "config.json"):
        config = _optional(path)
        if "model_type" in config:
            return config
    return None


def _from_config(
    folder: Path, config: Mapping[str, Any], generation: Mapping[str, Any]
) -> ModelFacts:
    return ModelFacts(
        max_context=stated_context(config) or _tokenizer_context(folder) or ASSUMED_CONTEXT,
        eos_token_ids=_ids(generation.get("eos_token_id")) or _ids(config.get("eos_token_id")),
        vocab_size=_first(config, ("vocab_size",)),
    )


def _from_ctranslate2(prepared: PreparedModel, report: Report | None) -> ModelFacts:
    variables = read_variables(prepared.folder)
    table = variables.get("decoder/position_encodings/encodings")
    context = table.shape[0] if table else _tokenizer_context(prepared.tokenizer_folder)
    if not context and report:
        report(
            f"{prepared.folder} does not tell the model's context: {ASSUMED_CONTEXT} tokens are "
            "assumed (copy the model's config.json into it as hf_config.json)"
        )
    return ModelFacts(
        max_context=context or ASSUMED_CONTEXT,
        eos_token_ids=_ctranslate2_ends(prepared),
        vocab_size=variables["decoder/embeddings/weight"].shape[0],
    )


def _ctranslate2_ends(prepared: PreparedModel) -> tuple[int, ...]:
    """From generation_config.json, else the ids of the end tokens that other files name."""
    for folder in (prepared.tokenizer_folder, prepared.folder):
        generation = _optional(folder / "generation_config.json")
        if ends := _ids(generation.get("eos_token_id")):
            return ends
    chosen = _optional(prepared.tokenizer_folder / "tokenizer_config.json").get("eos_token")
    named = [chosen, _optional(prepared.folder / "config.json").get("eos_token")]
    texts = {name.get("content") if isinstance(name, dict) else name for name in named}
    tokens = vocabulary(prepared.folder)
    found = tuple(sorted(tokens.index(text) for text in texts if text in tokens))
    if not found:
        raise ModelError(
            f"{prepared.folder} does not tell which token ends a text",
            "copy generation_config.json of the model it was made from into it",
        )
    return found


def _tokenizer_context(folder: Path) -> int:
    length = _optional(folder / "tokenizer_config.json").get("model_max_length")
    if isinstance(length, int | float) and 0 < length <= SANE_CONTEXT:
        return int(length)
    return 0


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def stated_context(config: Mapping[str, Any]) -> int:
    """Prompt and generated tokens of a row at most, by a Hugging Face config; 0 if it is silent."""
    return _first(config, _CONTEXT)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """The first of `names` that is a positive whole number; 0 if none."""
    values = (config.get(name) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), 0)


def _ids(value: Any) -> tuple[int, ...]:
    """Token ids from what configs hold: null, one id or a list."""
    listed = value if isinstance(value, list) else [value]
    return tuple(int(item) for item in listed if isinstance(item, int) and item >= 0)
