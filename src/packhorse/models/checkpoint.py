"""Open a Hugging Face folder: list the files that affect results, refuse unusable models.

Only names, JSON and headers are read; no library is loaded unless a function says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.errors import ModelError
from packhorse.models.config_checks import (
    StoredSizes,
    refuse_kernels,
    require_plausible,
    require_types,
    sizes_of_bytes,
    stored_sizes,
)
from packhorse.models.engine_support import CTRANSLATE2_FAMILIES, instead_for_folder
from packhorse.models.int8_folder import is_int8_folder
from packhorse.models.quantized_formats import quantization_method, require_known_format
from packhorse.models.recognize import (
    DECODER_ONLY,
    describe_weights,
    require_content,
    require_tokenizer_content,
)
from packhorse.models.safetensors_header import TensorEntry, bytes_by_dtype, read_header
from packhorse.storage.json_files import decode, read_object, shown

GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
ENCODERS = frozenset(
    {"albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet",
     "modernbert", "nomic_bert", "roberta", "xlm-roberta"}
)  # fmt: skip
VOCABULARIES = frozenset(
    {"tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
     "tokenizer.tiktoken", "tekken.json", "vocab.txt", "vocab.json"}
)  # fmt: skip
NAME_MAX = 255
TOKENIZER_NAMES = VOCABULARIES | {
    "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json",
    "chat_template.json", "chat_template.jinja",
}  # fmt: skip

BYTES_PER_WEIGHT = {"float32": 4, "float16": 2, "bfloat16": 2, "int16": 2}
_AGAIN = "copy or fetch it again"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A Hugging Face folder that was checked.

    Attributes:
        folder: The folder.
        config: Its config.json.
        weights: Names of the weight files that transformers would load.
        pickled: The weights are PyTorch pickles (.bin).
        files: All files that affect results, weights included, relative to the folder.
        quantization: Number format of most of the weights, or method of a quantized checkpoint.
    """

    folder: Path
    config: dict[str, Any]
    weights: tuple[str, ...]
    pickled: bool
    files: tuple[str, ...]
    quantization: str

    @property
    def bytes_on_disk(self) -> int:
        return total_bytes(self.folder, self.files)

    @property
    def weight_count(self) -> int:
        """Number of weights, estimated from the size of the files."""
        stored = total_bytes(self.folder, self.weights)
        return stored // BYTES_PER_WEIGHT.get(self.quantization, 4)

    def copy_tokenizer(self, folder: Path, *others: str) -> None:
        """Copy the tokenizer, generation_config.json, and those of `others` that exist."""
        for name in [*tokenizer_files(self.folder), "generation_config.json", *others]:
            if (self.folder / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / name, folder / name)


def total_bytes(folder: Path, names: Iterable[str]) -> int:
    """Return the size of files in a folder (bytes)."""
    return sum((folder / name).stat().st_size for name in names)


def open_checkpoint(folder: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Open the checkpoint in `folder`.

    Raises:
        ModelError: packhorse cannot run the model, or may not: pickles need `allow_pickle`.
    """
    config = read_object(folder / "config.json")
    require_types(folder, config)
    _require_generator(folder, config)
    refuse_kernels(folder, config)
    weights, pickled = _find_weights(folder, allow_pickle)
    tensors = {} if pickled else _read_tensors(folder, weights)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    require_known_format(folder, config, tensors, dtypes)
    require_plausible(folder, config, _measure_weights(folder, weights, tensors))
    tokenizer = tokenizer_files(folder)
    _require_tokenizer(folder, tokenizer)
    others = ("config.json", "generation_config.json", "model.safetensors.index.json",
              "pytorch_model.bin.index.json")  # fmt: skip
    kept = [name for name in others if (folder / name).is_file()]
    method = quantization_method(config.get("quantization_config"))
    return Checkpoint(
        folder=folder,
        config=config,
        weights=weights,
        pickled=pickled,
        files=tuple(sorted({*weights, *tokenizer, *kept})),
        quantization=method or _main_number_format(config, tensors),
    )


def require_sound_folder(folder: Path) -> None:
    """Raise ModelError if the config, weights or tokenizer of any kind of model are invalid."""
    config = read_object(folder / "config.json")
    require_types(folder, config)
    weights, _ = _find_weights(folder, allow_pickle=False)
    require_plausible(folder, config, stored_sizes(_read_tensors(folder, weights)))
    names = tokenizer_files(folder)
    for name in names:
        require_tokenizer_content(folder / name)


def stored_elements(folder: Path) -> int:
    """Return the number of elements in the weights of a folder, at most."""
    weights, pickled = _find_weights(folder, allow_pickle=True)
    tensors = {} if pickled else _read_tensors(folder, weights)
    return _measure_weights(folder, weights, tensors).elements


def tokenizer_files(folder: Path) -> list[str]:
    """Return the names of the tokenizer's files in `folder`, chat templates included, sorted."""
    templates = [*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*.jinja")]
    named = [folder / name for name in TOKENIZER_NAMES]
    found = {path for path in [*templates, *named] if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in found)


def require_own_class(checkpoint: Checkpoint) -> None:
    """Raise ModelError unless transformers has its own class for the model.

    packhorse runs no code that comes with weights. Int8 weights in the form of the packed engine
    are refused too.
    """
    _require_usual_weights(checkpoint)
    model_type = str(checkpoint.config.get("model_type"))
    if model_type in CTRANSLATE2_FAMILIES:
        return  # without loading transformers, which takes a second
    import transformers

    if model_type in transformers.CONFIG_MAPPING:
        _require_text_class(checkpoint.folder, model_type)
        return
    if "auto_map" in checkpoint.config:
        raise ModelError(
            f"{checkpoint.folder} needs Python code of its own ({_show_name(model_type)}), "
            "and packhorse runs no code that comes with a model",
            "use a model that transformers knows, or a version of transformers that knows this one",
        )
    raise ModelError(
        f"transformers {transformers.__version__} does not know models of type {shown(model_type)}",
        "a newer transformers may: pip install --upgrade transformers",
    )


def _require_text_class(folder: Path, model_type: str) -> None:
    """Raise ModelError unless transformers has a causal language model of this family."""
    from transformers.models.auto import modeling_auto

    if model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    for mapping, kind in (
        (modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "a vision-language model"),
        (modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, "a model that writes down speech"),
        (modeling_auto.MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES, "a model that speaks"),
        (modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "an encoder-decoder model"),
        (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "an encoder"),
    ):
        if model_type in mapping:
            raise ModelError(
                f"{folder} is {kind} ({model_type}), which packhorse does not run",
                "give a text-only model, such as its language model if published separately",
            )
    raise ModelError(
        f"{folder} is a {model_type}, which does not continue text",
        DECODER_ONLY,
    )


def require_unquantized(checkpoint: Checkpoint) -> None:
    """Raise ModelError for a checkpoint quantized by another tool (GPTQ, AWQ, ...).

    Only transformers, with the package of that method, computes with such weights.
    """
    if checkpoint.config.get("quantization_config") is not None:
        raise ModelError(
            f"{checkpoint.folder} is quantized already ({checkpoint.quantization})",
            instead_for_folder(checkpoint.folder, "ctranslate2"),
        )


def require_all_weights(loading: Mapping[str, Any]) -> None:
    """Raise ModelError if weights are missing or have another shape.

    transformers would initialize them randomly and continue.

    Args:
        loading: Result of `from_pretrained` for `output_loading_info`.
    """
    lacking = sorted({str(name) for name in loading["missing_keys"]})
    lacking += sorted(str(entry[0]) for entry in loading["mismatched_keys"])
    if lacking:
        raise ModelError(
            f"{len(lacking)} weights are missing or have another shape, e.g. {lacking[0]}",
            "config.json and weights do not belong together; copy or fetch the model again",
        )


def _require_usual_weights(checkpoint: Checkpoint) -> None:
    if is_int8_folder(checkpoint.config):
        raise ModelError(
            f"{checkpoint.folder} holds int8 weights for the packed engine",
            "add --engine packed --quantization int8, or give the model it was made from",
        )


def _require_generator(folder: Path, config: dict[str, Any]) -> None:
    """Raise ModelError unless a config describes a decoder-only language model."""
    model_type = config.get("model_type")
    if not model_type:
        if found := describe_weights(folder):
            raise ModelError(f"{folder} {found[0]}", found[1])
        raise ModelError(
            f"{folder}/config.json names no model_type, so it is no Hugging Face model",
            "a CTranslate2 folder needs model.bin and vocabulary.json beside its config.json",
        )
    named = config.get("architectures") or []
    named = [named] if isinstance(named, str) else named
    generates = any(name.endswith(GENERATES) for name in named)
    if config.get("is_encoder_decoder"):
        kind = "an encoder-decoder model"
    elif (named and not generates) or (model_type in ENCODERS and not config.get("is_decoder")):
        kind = f"a {_show_name(named[0] if named else model_type)}"
    else:
        return
    raise ModelError(
        f"{folder} is {kind}, not a language model that continues text",
        DECODER_ONLY,
    )


def _find_weights(folder: Path, allow_pickle: bool) -> tuple[tuple[str, ...], bool]:
    """Return the weight files that transformers prefers, and whether they are pickles."""
    names = _find_shards(folder, "model.safetensors")
    if names:
        return names, False
    pickles = _find_shards(folder, "pytorch_model.bin")
    if pickles and allow_pickle:
        for name in pickles:
            require_content(folder / name, allow_pickle=True)
        return pickles, True
    if pickles:
        raise ModelError(
            f"{folder} has no safetensors weights, only PyTorch pickles (.bin)",
            "convert them, or accept them with --allow-pickle (read with weights_only)",
        )
    if found := describe_weights(folder):
        raise ModelError(f"{folder} {found[0]}", found[1])
    raise ModelError(
        f"{folder} has no weights: no model.safetensors and no model.safetensors.index.json",
        "copy or fetch the weights into it; for a repository with .bin weights: --allow-pickle",
    )


def _find_shards(folder: Path, name: str) -> tuple[str, ...]:
    """Return `name`, or the shards that its index lists; () if there is neither."""
    if (folder / name).is_file():
        return (name,)
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return ()
    placed = read_object(index).get("weight_map")
    try:
        shards = sorted(set(decode(dict[str, str], placed, "weight_map").values()))
    except ValueError as error:
        raise ModelError(f"{index} is damaged: {error}", _AGAIN) from error
    if not shards:
        raise ModelError(f"{index} lists no weight files", _AGAIN)
    outside = [shard for shard in shards if not _is_weight_file_name(shard, Path(name).suffix)]
    if outside:
        raise ModelError(
            f"{index} names {shown(outside[0])}, which is no weight file beside it",
            _AGAIN,
        )
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of {len(shards)} weight files, e.g. {missing[0]}",
            "copy or fetch the rest",
        )
    return tuple(shards)


def _is_weight_file_name(shard: str, suffix: str) -> bool:
    """Return whether an index names a file of its own folder."""
    return Path(shard).name == shard and Path(shard).suffix == suffix and len(shard) <= NAME_MAX


def _show_name(text: object) -> str:
    """Return a name from a config for a message."""
    return shown(text).strip("'")


def _measure_weights(
    folder: Path, weights: tuple[str, ...], tensors: Mapping[str, TensorEntry]
) -> StoredSizes:
    """Return the sizes of the weights, by headers, or by the size of files if they are pickles."""
    if tensors:
        return stored_sizes(tensors)
    return sizes_of_bytes(total_bytes(folder, weights))


def _read_tensors(folder: Path, weights: tuple[str, ...]) -> dict[str, TensorEntry]:
    found: dict[str, TensorEntry] = {}
    for name in weights:
        found |= read_header(folder / name)
    if not found:
        raise ModelError(f"{folder} holds no weights in {weights[0]}", _AGAIN)
    return found


def _main_number_format(config: dict[str, Any], tensors: Mapping[str, TensorEntry]) -> str:
    if not tensors:
        return str(config.get("dtype") or config.get("torch_dtype") or "as stored")
    return bytes_by_dtype(tensors).most_common(1)[0][0]


def _require_tokenizer(folder: Path, names: Sequence[str]) -> None:
    """Raise ModelError unless there is a tokenizer in valid files."""
    for name in names:
        require_tokenizer_content(folder / name)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        if (folder / name).is_file():
            read_object(folder / name)
    if not VOCABULARIES & set(names):
        raise ModelError(
            f"{folder} has no tokenizer",
            "copy tokenizer.json and tokenizer_config.json of the model into it",
        )
