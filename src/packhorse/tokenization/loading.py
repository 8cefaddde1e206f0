"""Load the tokenizer of a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.tokenization.errors import tokenizer_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer with its chat template.

    Raises:
        ModelError: If it cannot be loaded.
    """
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
    """Return the chat template in chat_template.json, where older models keep it."""
    template = _settings(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = [each for each in template if isinstance(each, dict)]
        return {str(each.get("name")): str(each.get("template")) for each in named} or None
    return template if isinstance(template, str) else None


def _settings(file: Path) -> dict[str, Any]:
    """Return a JSON object of a model; {} if it cannot be read."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
