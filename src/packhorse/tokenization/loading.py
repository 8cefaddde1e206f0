"""Load the tokenizer of a Hugging Face folder."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.errors import ModelError
from packhorse.storage.cache_folder import derived_folder, fill_derived, is_complete
from packhorse.tokenization.errors import tokenizer_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".tiktoken"}
"""Names of files that a tokenizer may follow from end so."""
_MOST_BYTES = 1 << 28
_TEXTS = (
    "It's 3.14 p.m.; 12345 caf\u00e9s,\n\n  \u4f60\u597d \U0001f600 ",
    " <s></s><|im_end|><|endoftext|>[INST]a",
    "",
)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer with its chat template.

    transformers' AutoTokenizer loads torch, which takes seconds. So a tokenizer that is nothing
    but its tokenizer.json and special tokens is kept in the cache folder, and loaded from there
    the next time.

    Raises:
        ModelError: If it cannot be loaded.
    """
    kept = _kept_folder(folder)
    if kept and is_complete(kept):
        with suppress(Exception):  # whatever is wrong with it, it is loaded anew
            return _load_kept(kept)
    tokenizer = _load_new(folder)
    if kept:
        fill_derived(kept, lambda target: _keep(tokenizer, target))
    return tokenizer


def _load_new(folder: Path) -> PreTrainedTokenizerBase:
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with tokenizer_errors(folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    if not tokenizer.chat_template:
        tokenizer.chat_template = _processor_template(folder)
    return tokenizer


def _kept_folder(folder: Path) -> Path | None:
    """Return where the tokenizer of a folder is kept; None if its files cannot be read."""
    with suppress(OSError, ModelError):
        places = (folder, folder / "additional_chat_templates")
        files = [path for place in places if place.is_dir() for path in sorted(place.iterdir())]
        sources = [path for path in files if path.suffix in _SUFFIXES and path.is_file()]
        if sum(path.stat().st_size for path in sources) <= _MOST_BYTES:
            return derived_folder("tokenizers", sources, ("transformers", "tokenizers"))
    return None


def _load_kept(kept: Path) -> PreTrainedTokenizerBase:
    from transformers.tokenization_utils_tokenizers import TokenizersBackend
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    tokenizer: PreTrainedTokenizerBase = TokenizersBackend.from_pretrained(
        kept, local_files_only=True
    )
    return tokenizer


def _keep(tokenizer: PreTrainedTokenizerBase, target: Path) -> bool:
    """Write a tokenizer; return whether what is loaded from there is the same in all respects."""
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    own = type(tokenizer).__mro__
    if TokenizersBackend not in own:
        return False
    for kind in own[: own.index(TokenizersBackend)]:
        if any(callable(value) and name != "__init__" for name, value in vars(kind).items()):
            return False
    try:
        tokenizer.save_pretrained(target)
        return _behavior(_load_kept(target)) == _behavior(tokenizer)
    except Exception:  # noqa: BLE001 - then it is loaded from its own files each time
        return False


def _behavior(tokenizer: Any) -> tuple[Any, ...]:
    """Return all of a tokenizer that affects how packhorse encodes, decodes and renders."""
    encoded = [
        tokenizer(
            list(_TEXTS), add_special_tokens=special, split_special_tokens=split, verbose=False
        )["input_ids"]
        for special in (False, True)
        for split in (False, True)
    ]
    added = tokenizer.added_tokens_decoder
    return (
        tokenizer.backend_tokenizer.to_str(),
        encoded,
        [tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded[0]],
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        tokenizer.all_special_tokens,
        tokenizer.all_special_ids,
        tokenizer.eos_token_id,
        {token_id: (token.content, token.special) for token_id, token in added.items()},
    )


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
