"""Loads the tokenizer of a Hugging Face folder, or says what the folder is instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.tokenization.errors import tokenizer_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template. Raises ModelError."""
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with tokenizer_errors(folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    if not tokenizer.chat_template:
        tokenizer.chat_template = _processor_template(folder)
    return tokenizer


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
