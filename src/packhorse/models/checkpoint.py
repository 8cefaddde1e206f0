"""A Hugging Face folder: which of its files decide a result, and whether we may use it.

Looks at names, JSON and headers only; loads no library.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.errors import ModelError
from packhorse.models.engine_support import instead_for_folder
from packhorse.models.int8_folder import is_int8_folder
from packhorse.models.safetensors_header import bytes_by_dtype

GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
ENCODERS = frozenset(
    {"albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet",
     "modernbert", "nomic_bert", "roberta", "xlm-roberta"}
)  # fmt: skip
VOCABULARIES = frozenset(
    {"tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
     "tokenizer.tiktoken", "tekken.json", "vocab.txt", "vocab.json"}
)  # fmt: skip
TOKENIZER_NAMES = VOCABULARIES | {
    "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json",
    "chat_template.json", "chat_template.jinja",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A Hugging Face folder that was looked at.

    weights: file names of the weights transformers would load. pickled: they are .bin files.
    files: all files that decide a result, weights included, relative to the folder.
    quantization: number format of most of the weights.
    """

    folder: Path
    config: dict[str, Any]
    weights: tuple[str, ...]
    pickled: bool
    files: tuple[str, ...]
    quantization: str

    @property
    def bytes_on_disk(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.files)

    def copy_tokenizer(self, folder: Path, *others: str) -> None:
        """Copies the tokenizer and generation_config.json, and `others` where they are there."""
        for name in [*tokenizer_files(self.folder), "generation_config.json", *others]:
            if (self.folder / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / name, folder / name)


def open_checkpoint(folder: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """The checkpoint in `folder`; ModelError for what packhorse cannot or may not run."""
    config = read_json(folder / "config.json")
    _require_generator(folder, config)
    weights, pickled = _weights(folder, allow_pickle)
    tokenizer = tokenizer_files(folder)
    if not VOCABULARIES & set(tokenizer):
        raise ModelError(
            f"{folder} has no tokenizer",
            "copy tokenizer.json and tokenizer_config.json of the model into it",
        )
    others = ("config.json", "generation_config.json", "model.safetensors.index.json",
              "pytorch_model.bin.index.json")  # fmt: skip
    kept = [name for name in others if (folder / name).is_file()]
    quantized = config.get("quantization_config")
    return Checkpoint(
        folder=folder,
        config=config,
        weights=weights,
        pickled=pickled,
        files=tuple(sorted({*weights, *tokenizer, *kept})),
        quantization=str(quantized.get("quant_method", "quantized"))
        if isinstance(quantized, dict)
        else _number_format(folder, config, weights, pickled),
    )


def tokenizer_files(folder: Path) -> list[str]:
    """Names of the tokenizer's files in `folder`, chat templates included, sorted."""
    templates = [*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*.jinja")]
    named = [folder / name for name in TOKENIZER_NAMES]
    found = {path for path in [*templates, *named] if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in found)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ModelError when the file holds something else."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check the folder") from error
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}", "copy or fetch it again") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} holds no JSON object", "copy or fetch it again")
    return document


def require_own_class(checkpoint: Checkpoint) -> None:
    """ModelError when transformers has no class of its own for the model: packhorse runs no code
    that comes with weights; or when its weights are in a form that only the packed engine reads.
    Imports transformers."""
    import transformers

    _require_usual_weights(checkpoint)
    model_type = checkpoint.config.get("model_type")
    if model_type in transformers.CONFIG_MAPPING:
        return
    if "auto_map" in checkpoint.config:
        raise ModelError(
            f"{checkpoint.folder} needs Python code of its own ({model_type}), "
            "and packhorse runs no code that comes with a model",
            "use a model that transformers knows, or a version of transformers that knows this one",
        )
    raise ModelError(
        f"transformers {transformers.__version__} does not know models of type {model_type!r}",
        "a newer transformers may: pip install --upgrade transformers",
    )


def require_unquantized(checkpoint: Checkpoint) -> None:
    """ModelError for weights that somebody quantized (GPTQ, AWQ, ...): only transformers, with the
    library of that format, computes with them."""
    if checkpoint.config.get("quantization_config") is not None:
        raise ModelError(
            f"{checkpoint.folder} is quantized already ({checkpoint.quantization})",
            instead_for_folder(checkpoint.folder, "ctranslate2"),
        )


def require_all_weights(loading: Mapping[str, Any]) -> None:
    """ModelError when weights were missing or of another shape; give it what transformers returns
    for `output_loading_info`. transformers would run on with random numbers in their place."""
    lacking = sorted({str(name) for name in loading["missing_keys"]})
    lacking += sorted(str(entry[0]) for entry in loading["mismatched_keys"])
    if lacking:
        raise ModelError(
            f"{len(lacking)} weights are missing or have another shape, e.g. {lacking[0]}",
            "the files do not belong to their config; copy or fetch the model again",
        )


def _require_usual_weights(checkpoint: Checkpoint) -> None:
    if is_int8_folder(checkpoint.config):
        raise ModelError(
            f"{checkpoint.folder} holds int8 weights for the packed engine",
            "add --engine packed --quantization int8, or give the model it was made from",
        )


def _require_generator(folder: Path, config: dict[str, Any]) -> None:
    """Refuses what is no decoder-only language model."""
    model_type = config.get("model_type")
    if not model_type:
        raise ModelError(
            f"{folder}/config.json names no model_type, so it is no Hugging Face model",
            "a CTranslate2 folder needs model.bin and vocabulary.json beside its config.json",
        )
    named = config.get("architectures") or []
    generates = any(name.endswith(GENERATES) for name in named)
    if config.get("is_encoder_decoder"):
        kind = "an encoder-decoder model"
    elif (named and not generates) or (model_type in ENCODERS and not config.get("is_decoder")):
        kind = f"a {named[0] if named else model_type}"
    else:
        return
    raise ModelError(
        f"{folder} is {kind}, not a language model that continues text",
        "packhorse runs decoder-only language models such as llama, qwen or gpt2",
    )


def _weights(folder: Path, allow_pickle: bool) -> tuple[tuple[str, ...], bool]:
    """Names of the weight files, in transformers' order of preference, and whether they are
    pickles."""
    names = _one_or_shards(folder, "model.safetensors")
    if names:
        return names, False
    pickles = _one_or_shards(folder, "pytorch_model.bin")
    if pickles and allow_pickle:
        return pickles, True
    if pickles or any(folder.glob("*.bin")):
        raise ModelError(
            f"{folder} has no safetensors weights, only PyTorch pickles (.bin)",
            "convert them, or accept them with --allow-pickle (read with weights_only)",
        )
    raise ModelError(
        f"{folder} has no weights: no model.safetensors and no model.safetensors.index.json",
        "copy or fetch the weights into it; for a repository with .bin weights: --allow-pickle",
    )


def _one_or_shards(folder: Path, name: str) -> tuple[str, ...]:
    """`name`, or the shards its index lists; () when there is neither."""
    if (folder / name).is_file():
        return (name,)
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return ()
    placed = read_json(index).get("weight_map")
    shards = sorted(set(placed.values())) if isinstance(placed, dict) else []
    if not shards or not all(isinstance(s, str) and Path(s).name == s for s in shards):
        raise ModelError(f"{index} lists no weight files", "copy or fetch it again")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of {len(shards)} weight files, e.g. {missing[0]}",
            "copy or fetch the rest",
        )
    return tuple(shards)


def _number_format(
    folder: Path, config: dict[str, Any], weights: tuple[str, ...], pickled: bool
) -> str:
    if pickled:
        return str(config.get("dtype") or config.get("torch_dtype") or "as stored")
    found: Counter[str] = Counter()
    for name in weights:
        found += bytes_by_dtype(folder / name)
    if not found:
        raise ModelError(f"{folder} holds no weights in {weights[0]}", "copy or fetch it again")
    return found.most_common(1)[0][0]
