"""Loads the tokenizer of a Hugging Face folder, or says what the folder is instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.errors import ModelError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template. Raises ModelError."""
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers raises many kinds for a damaged folder
        raise _unusable(folder, error) from error
    if not tokenizer.chat_template:
        tokenizer.chat_template = _processor_template(folder)
    return tokenizer


def _unusable(folder: Path, error: Exception) -> ModelError:
    if "trust_remote_code" in str(error):
        name = _settings(folder / "tokenizer_config.json").get("tokenizer_class")
        return ModelError(
            f"the tokenizer in {folder} needs Python code of its own"
            f"{f' ({name})' if isinstance(name, str) else ''}, which packhorse does not run",
            "give a folder with tokenizer.json whose tokenizer_config.json has no auto_map",
        )
    has_model_file = (folder / "tokenizer.model").exists()
    is_alone = has_model_file and not (folder / "tokenizer.json").exists()
    libraries = ("tiktoken", "sentencepiece", "protobuf")
    if is_alone and any(name in str(error) for name in libraries):
        return ModelError(
            f"the tokenizer in {folder} is a SentencePiece file, whose libraries are missing",
            "run pip install sentencepiece protobuf, or give a folder with tokenizer.json",
        )
    return ModelError(
        f"the tokenizer in {folder} cannot be loaded: {first_line(error)}",
        "the folder needs tokenizer.json (or tokenizer.model) and tokenizer_config.json",
    )


def _processor_template(folder: Path) -> str | dict[str, str] | None:
    """The chat template that older models keep beside their processor, in chat_template.json."""
    template = _settings(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = [each for each in template if isinstance(each, dict)]
        return {str(each.get("name")): str(each.get("template")) for each in named} or None
    return template if isinstance(template, str) else None


def _settings(file: Path) -> dict[str, Any]:
    """A JSON object of a model; empty where there is none that can be read."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
