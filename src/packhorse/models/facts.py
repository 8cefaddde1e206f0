"""Facts about a model that engines and planners need before it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.errors import ModelError, model_errors
from packhorse.models.checkpoint import VOCABULARIES, tokenizer_files
from packhorse.models.config_checks import CONTEXT_KEYS
from packhorse.models.ctranslate2_folder import read_variables, vocabulary
from packhorse.models.prepared import PreparedModel, Report
from packhorse.storage.json_files import read_object
from packhorse.tokenization import Codec, HuggingFaceCodec

ASSUMED_CONTEXT = 2048
SANE_CONTEXT = 10_000_000
_EXTENDING_ROPE = ("yarn", "dynamic")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes and token ids of a model; a size of 0 is unknown.

    Attributes:
        max_context: Maximum prompt and generated tokens of a row (tokens).
        eos_token_ids: Ids that end a text: all that generation_config.json, config.json and the
            tokenizer name, without those outside the vocabulary.
        vocab_size: Size of the vocabulary (token ids).
    """

    max_context: int
    eos_token_ids: tuple[int, ...]
    vocab_size: int


WITHOUT_FILES = ModelFacts(max_context=32_768, eos_token_ids=(), vocab_size=256)


def model_facts(
    prepared: PreparedModel,
    report: Report | None = None,
    load_codec: Callable[[], Codec] | None = None,
) -> ModelFacts:
    """Return the facts of a prepared model, from its Hugging Face config if there is one.

    Without a config, they are read from the CTranslate2 folder. A context length that no file gives
    is assumed and reported.

    Args:
        prepared: The model.
        report: Receives the assumption.
        load_codec: Returns the model's tokenizer; None for `PreparedModel.codec`.
    """
    if not prepared.has_files:
        return WITHOUT_FILES
    load_codec = load_codec or prepared.codec
    with model_errors(f"{prepared.folder} cannot be used", "copy or fetch the model again"):
        return _read_facts(prepared, report, load_codec)


def _read_facts(
    prepared: PreparedModel, report: Report | None, load_codec: Callable[[], Codec]
) -> ModelFacts:
    config = _read_huggingface_config(prepared)
    if config is None:
        return _read_ctranslate2_facts(prepared, report, load_codec)
    text = config.get("text_config")
    described = {**config, **text} if isinstance(text, dict) else config
    size = _first_positive(described, ("vocab_size",))
    context = stated_context(described) or _read_tokenizer_context(prepared.tokenizer_folder)
    stated = [config.get("eos_token_id"), described.get("eos_token_id")]
    return ModelFacts(
        max_context=context or ASSUMED_CONTEXT,
        eos_token_ids=_find_end_tokens(prepared, stated, size, load_codec),
        vocab_size=size,
    )


def _read_huggingface_config(prepared: PreparedModel) -> dict[str, Any] | None:
    for path in (prepared.folder / "hf_config.json", prepared.tokenizer_folder / "config.json"):
        config = _read_if_present(path)
        if "model_type" in config:
            return config
    return None


def _find_end_tokens(
    prepared: PreparedModel, stated: Iterable[Any], size: int, load_codec: Callable[[], Codec]
) -> tuple[int, ...]:
    """Return the ids of all end tokens in a model's files, generation_config.json first.

    A tokenizer's end token that is an ordinary word counts only if no other file names one: it
    would cut texts where the model was not trained to end.

    Args:
        prepared: The model.
        stated: Values of config.json.
        size: Size of the vocabulary, 0 if unknown.
        load_codec: Returns the model's tokenizer.
    """
    folders = (prepared.tokenizer_folder, prepared.folder)
    generation = [_read_if_present(folder / "generation_config.json") for folder in folders]
    values = [*(each.get("eos_token_id") for each in generation), *stated]
    found = list(dict.fromkeys(each for value in values for each in _parse_ids(value)))
    if VOCABULARIES & set(tokenizer_files(prepared.tokenizer_folder)):
        codec = load_codec()
        if not isinstance(codec, HuggingFaceCodec):
            codec = HuggingFaceCodec(prepared.tokenizer_folder)
        end = codec.end_token_id
        if end is not None and end not in found and not (found and codec.is_ordinary(end)):
            found.append(end)
    return tuple(each for each in found if not size or each < size)


def _read_ctranslate2_facts(
    prepared: PreparedModel, report: Report | None, load_codec: Callable[[], Codec]
) -> ModelFacts:
    variables = read_variables(prepared.folder)
    table = variables.get("decoder/position_encodings/encodings")
    context = table.shape[0] if table else _read_tokenizer_context(prepared.tokenizer_folder)
    if not context and report:
        report(
            f"{prepared.folder} does not tell the model's context: {ASSUMED_CONTEXT} tokens are "
            "assumed (copy the model's config.json into it as hf_config.json)"
        )
    size = variables["decoder/embeddings/weight"].shape[0]
    return ModelFacts(
        max_context=context or ASSUMED_CONTEXT,
        eos_token_ids=_find_ctranslate2_end_tokens(prepared, size, load_codec),
        vocab_size=size,
    )


def _find_ctranslate2_end_tokens(
    prepared: PreparedModel, size: int, load_codec: Callable[[], Codec]
) -> tuple[int, ...]:
    """Return the end tokens of a CTranslate2 folder, whose config.json names a token, not an id."""
    named = _read_if_present(prepared.folder / "config.json").get("eos_token")
    tokens = vocabulary(prepared.folder)
    stated = [tokens.index(named)] if named in tokens else []
    found = _find_end_tokens(prepared, [stated], size, load_codec)
    if not found:
        raise ModelError(
            f"{prepared.folder} does not tell which token ends a text",
            "copy generation_config.json of the model it was made from into it",
        )
    return found


def _read_tokenizer_context(folder: Path) -> int:
    length = _read_if_present(folder / "tokenizer_config.json").get("model_max_length")
    if isinstance(length, int | float) and 0 < length <= SANE_CONTEXT:
        return int(length)
    return 0


def _read_if_present(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def stated_context(config: Mapping[str, Any]) -> int:
    """Return the context length by a Hugging Face config (tokens), 0 if it gives none.

    YaRN and dynamic NTK scaling extend the trained context by a factor, which the config of a
    manually extended model does not repeat in `max_position_embeddings`.
    """
    trained = _first_positive(config, CONTEXT_KEYS)
    settings = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(settings, Mapping):
        return trained
    nested = [each for each in settings.values() if isinstance(each, Mapping)]
    return max(trained, *(_extend_context(config, each, trained) for each in [settings, *nested]))


def _extend_context(config: Mapping[str, Any], rope: Mapping[str, Any], trained: int) -> int:
    """Return the context after RoPE scaling, 0 if the scaling does not extend it."""
    kind, factor = rope.get("rope_type") or rope.get("type"), rope.get("factor")
    if (
        kind not in _EXTENDING_ROPE
        or isinstance(factor, bool)
        or not isinstance(factor, int | float)
    ):
        return 0
    name = "original_max_position_embeddings"
    original = _first_positive(rope, (name,)) or _first_positive(config, (name,)) or trained
    extended = original * factor
    return int(extended) if 0 < extended <= SANE_CONTEXT else 0


def _first_positive(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """Return the first of the values that is a positive whole number, 0 if none."""
    values = (config.get(name) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), 0)


def _parse_ids(value: Any) -> tuple[int, ...]:
    """Return token ids from a value of a config: null, one id or a list."""
    listed = value if isinstance(value, list) else [value]
    return tuple(item for item in listed if type(item) is int and item >= 0)
