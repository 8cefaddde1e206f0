"""Check that a GGUF file holds a language model whose sizes fit its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packhorse.errors import ModelError
from packhorse.models.config_checks import MAX_CONTEXT, require_counts
from packhorse.models.gguf_header import GgufHeader
from packhorse.models.recognize import DECODER_ONLY
from packhorse.storage.json_files import decode

_ENCODERS = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert",
     "modern-bert", "eurobert", "gemma-embedding"}
)  # fmt: skip
_TRANSLATORS = frozenset({"t5", "t5encoder"})
_IMAGES = frozenset(
    {"flux", "sd1", "sdxl", "sd3", "aura", "ltxv", "hyvid", "wan", "hidream", "cosmos", "lumina2",
     "qwen_image", "pig", "z_image"}
)  # fmt: skip
_SOUNDS = frozenset({"wavtokenizer-dec", "whisper", "kokoro", "parler-tts", "dia", "orpheus"})
_CHANGED = "the file was changed or damaged: copy or fetch it again"
_MAX_SIZE = 1 << 31


def read_field(file: Path, header: GgufHeader, name: str, kind: Any, otherwise: Any) -> Any:
    """Return a metadata entry, `otherwise` if there is none; ModelError unless it is a `kind`."""
    if name not in header.fields:
        return otherwise
    try:
        return decode(kind, header.fields[name], name)
    except ValueError as error:
        raise ModelError(f"{file}: {error}", _CHANGED) from error


def require_language_model(file: Path, header: GgufHeader) -> None:
    """Check a GGUF file by its header.

    Raises:
        ModelError: The file is a part of a model, is not a language model, or describes sizes that
            its tensors cannot have.
    """
    _require_whole(file, header)
    architecture = read_field(file, header, "general.architecture", str, "")
    kind = read_field(file, header, "general.type", str, "model")
    if architecture == "clip" or kind == "mmproj":
        raise ModelError(
            f"{file} is the vision or audio part of a model (mmproj), not the language model",
            "give the other GGUF file of the model",
        )
    if kind == "adapter":
        raise ModelError(
            f"{file} is a LoRA adapter, which changes another model, not a model of its own",
            "merge it into its base model (llama-export-lora) and give the file written then",
        )
    if kind in ("imatrix", "vocab") or not header.tensors:
        what = "an importance matrix" if kind == "imatrix" else "a vocabulary without weights"
        raise ModelError(f"{file} holds {what}, not a model", "give the model's own GGUF file")
    for names, what in (
        (_ENCODERS, "an encoder, which makes embeddings and no text"),
        (_TRANSLATORS, "an encoder-decoder model"),
        (_IMAGES, "a model that makes images or video"),
        (_SOUNDS, "a model for sound"),
    ):
        if architecture.lower() in names:
            raise ModelError(f"{file} is {what} ({architecture})", DECODER_ONLY)
    tokens = read_field(file, header, "tokenizer.ggml.tokens", list[str], [])
    if not architecture or not tokens:
        lacking = "tokenizer.ggml.tokens" if architecture else "general.architecture"
        raise ModelError(f"{file} holds no language model: it has no {lacking}", DECODER_ONLY)
    _require_plausible(file, header, architecture)


def _require_whole(file: Path, header: GgufHeader) -> None:
    count = read_field(file, header, "split.count", int, 0)
    if count > 1:
        part = read_field(file, header, "split.no", int, 0) + 1
        raise ModelError(
            f"{file} is part {part} of {count} of a GGUF model, and packhorse reads whole files",
            f"join them with llama.cpp: llama-gguf-split --merge {file.name} whole.gguf",
        )


def _require_plausible(file: Path, header: GgufHeader, architecture: str) -> None:
    largest = max(max(tensor.shape, default=1) for tensor in header.tensors.values())
    elements = sum(tensor.elements for tensor in header.tensors.values())
    bounds = {
        "block_count": (1, len(header.tensors)),
        "embedding_length": (1, largest),
        "vocab_size": (1, max(largest, 1)),
        "context_length": (1, MAX_CONTEXT),
        "feed_forward_length": (0, min(elements, _MAX_SIZE)),
        "attention.head_count": (0, largest),
        "attention.head_count_kv": (0, largest),
        "attention.key_length": (0, largest),
        "attention.value_length": (0, largest),
        "expert_count": (0, largest),
        "expert_used_count": (0, largest),
    }
    for name, (least, most) in bounds.items():
        key = f"{architecture}.{name}"
        if (value := header.fields.get(key)) is not None:
            reason = f"the file holds {len(header.tensors)} tensors"
            require_counts(f"{file}: {key}", value, (least, most), reason, _CHANGED)
