"""Errors of loading a tokenizer: what its files are, and which package they need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from packhorse.errors import ModelError, first_line, model_errors

_HINT = "the folder needs tokenizer.json (or tokenizer.model) and tokenizer_config.json"
_PACKAGES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("*.model", "a SentencePiece file",
     {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}),
    ("*.tiktoken", "a tiktoken file", {"tiktoken": "tiktoken"}),
    ("tekken.json", "in Mistral's own format (tekken.json)", {"mistral-common": "mistral_common"}),
)  # fmt: skip
"""File names, what they are, and the packages that transformers needs for them, with modules."""


@contextmanager
def tokenizer_errors(folder: Path) -> Iterator[None]:
    """Turn what transformers raises while it loads the tokenizer in `folder` into one ModelError.

    Raises:
        ModelError: It says what is missing, such as a package or Python code of the model.
    """
    with model_errors(f"the tokenizer in {folder} cannot be loaded", _HINT):
        try:
            yield
        except Exception as error:
            if (known := _known_reason(folder, error)) is None:
                raise
            raise known from error


def _known_reason(folder: Path, error: Exception) -> ModelError | None:
    if "trust_remote_code" in str(error):
        return ModelError(
            f"the tokenizer in {folder} needs Python code of its own, and packhorse runs no code "
            "that comes with a model",
            "give a model whose tokenizer is a tokenizer.json",
        )
    if fault := _config_fault(folder):
        return ModelError(
            f"{folder}/config.json cannot be used: {fault}",
            "it was changed or is for another version of transformers: copy or fetch it again",
        )
    if (folder / "tokenizer.json").is_file():
        return None
    for files, what, packages in _PACKAGES:
        missing = [name for name, module in packages.items() if not _is_installed(module)]
        if missing and any(folder.glob(files)):
            return ModelError(
                f"the tokenizer in {folder} is {what}, which needs {' and '.join(missing)}",
                f"pip install {' '.join(missing)}",
            )
    return None


def _config_fault(folder: Path) -> str:
    """Return why transformers cannot read the config beside a tokenizer; "" if it can."""
    if not (folder / "config.json").is_file():
        return ""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - transformers raises many kinds
        return first_line(error)
    return ""


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package
        return False
