"""What engines and planners need to know of a model before it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.errors import ModelError, model_errors
from packhorse.models.checkpoint import VOCABULARIES, tokenizer_files
from packhorse.models.ctranslate2_folder import read_variables, vocabulary
from packhorse.models.prepared import PreparedModel, Report
from packhorse.storage.json_files import read_object
from packhorse.tokenization import HuggingFaceCodec

ASSUMED_CONTEXT = 2048
SANE_CONTEXT = 10_000_000
_LENGTHENING = ("yarn", "dynamic")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes and ids of a model; 0 is a size that could not be found out.

    max_context: prompt and generated tokens of one row at most (tokens).
    eos_token_ids: any of these ends a text: all that generation_config.json, config.json and the
        tokenizer name, those apart that the vocabulary does not have.
    """

    max_context: int
    eos_token_ids: tuple[int, ...]
    vocab_size: int


WITHOUT_FILES = ModelFacts(max_context=32_768, eos_token_ids=(), vocab_size=256)


def model_facts(prepared: PreparedModel, report: Report | None = None) -> ModelFacts:
    """The facts of a prepared model, from its Hugging Face config where there is one.

    A ready CTranslate2 folder without it is asked itself; a context that no file tells is
    assumed, and reported.
    """
    if not prepared.has_files:
        return WITHOUT_FILES
    with model_errors(f"{prepared.folder} cannot be used", "copy or fetch the model again"):
        return _facts(prepared, report)


def _facts(prepared: PreparedModel, report: Report | None) -> ModelFacts:
    config = _huggingface_config(prepared)
    if config is None:
        return _from_ctranslate2(prepared, report)
    text = config.get("text_config")
    described = {**config, **text} if isinstance(text, dict) else config
    size = _first(described, ("vocab_size",))
    context = stated_context(described) or _tokenizer_context(prepared.tokenizer_folder)
    stated = [config.get("eos_token_id"), described.get("eos_token_id")]
    return ModelFacts(
        max_context=context or ASSUMED_CONTEXT,
        eos_token_ids=_ends(prepared, stated, size),
        vocab_size=size,
    )


def _huggingface_config(prepared: PreparedModel) -> dict[str, Any] | None:
    for path in (prepared.folder / "hf_config.json", prepared.tokenizer_folder / "config.json"):
        config = _optional(path)
        if "model_type" in config:
            return config
    return None


def _ends(prepared: PreparedModel, stated: Iterable[Any], size: int) -> tuple[int, ...]:
    """Ids of all end tokens that a model's files name, those of generation_config.json first.

    A tokenizer's end token that is an ordinary word counts only if nothing else names an end: it
    would cut texts that the model was not trained to end there. stated: values of config.json.
    size: of the vocabulary; 0 is unknown.
    """
    folders = (prepared.tokenizer_folder, prepared.folder)
    generation = [_optional(folder / "generation_config.json") for folder in folders]
    values = [*(each.get("eos_token_id") for each in generation), *stated]
    found = list(dict.fromkeys(each for value in values for each in _ids(value)))
    if VOCABULARIES & set(tokenizer_files(prepared.tokenizer_folder)):
        codec = HuggingFaceCodec(prepared.tokenizer_folder)
        end = codec.end_token_id
        if end is not None and end not in found and not (found and codec.is_ordinary(end)):
            found.append(end)
    return tuple(each for each in found if not size or each < size)


def _from_ctranslate2(prepared: PreparedModel, report: Report | None) -> ModelFacts:
    variables = read_variables(prepared.folder)
    table = variables.get("decoder/position_encodings/encodings")
    context = table.shape[0] if table else _tokenizer_context(prepared.tokenizer_folder)
    if not context and report:
        report(
            f"{prepared.folder} does not tell the model's context: {ASSUMED_CONTEXT} tokens are "
            "assumed (copy the model's config.json into it as hf_config.json)"
        )
    size = variables["decoder/embeddings/weight"].shape[0]
    return ModelFacts(
        max_context=context or ASSUMED_CONTEXT,
        eos_token_ids=_ctranslate2_ends(prepared, size),
        vocab_size=size,
    )


def _ctranslate2_ends(prepared: PreparedModel, size: int) -> tuple[int, ...]:
    """As `_ends`; CTranslate2's own config.json names a token, not an id."""
    named = _optional(prepared.folder / "config.json").get("eos_token")
    tokens = vocabulary(prepared.folder)
    stated = [tokens.index(named)] if named in tokens else []
    found = _ends(prepared, [stated], size)
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
    """Prompt and generated tokens of a row at most, by a Hugging Face config; 0 if it is silent.

    YaRN and dynamic NTK scaling lengthen the trained context by a factor, which the config of a
    model that is extended by hand does not repeat in `max_position_embeddings`.
    """
    trained = _first(config, _CONTEXT)
    settings = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(settings, Mapping):
        return trained
    nested = [each for each in settings.values() if isinstance(each, Mapping)]
    return max(trained, *(_lengthened(config, each, trained) for each in [settings, *nested]))


def _lengthened(config: Mapping[str, Any], rotation: Mapping[str, Any], trained: int) -> int:
    """The context after a rotation's scaling; 0 if it does not lengthen it."""
    kind, factor = rotation.get("rope_type") or rotation.get("type"), rotation.get("factor")
    if kind not in _LENGTHENING or isinstance(factor, bool) or not isinstance(factor, int | float):
        return 0
    name = "original_max_position_embeddings"
    original = _first(rotation, (name,)) or _first(config, (name,)) or trained
    lengthened = original * factor
    return int(lengthened) if 0 < lengthened <= SANE_CONTEXT else 0


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """The first of `names` that is a positive whole number; 0 if none."""
    values = (config.get(name) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), 0)


def _ids(value: Any) -> tuple[int, ...]:
    """Token ids from what configs hold: null, one id or a list."""
    listed = value if isinstance(value, list) else [value]
    return tuple(item for item in listed if type(item) is int and item >= 0)
