"""The result of preparing a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from packhorse.engine_protocol.registry import NO_MODEL, ModelKind, default_engine
from packhorse.tokenization import ByteCodec, Codec, HuggingFaceCodec

Report = Callable[[str], None]
"""Receives one line on a long step, or on something that went differently than expected."""


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A verified folder that an engine can load.

    Attributes:
        name: The model as the user named it.
        kind: Form of the folder.
        folder: Folder of the weights.
        tokenizer_folder: Folder that transformers' AutoTokenizer loads.
        quantization: Number format of the stored weights ("float32", "bfloat16", "int8", ...), or
            "as stored" if no file tells.
        fingerprint: sha256 (hex) over the names and digests of all files that affect results.
        bytes_on_disk: Size of those files (bytes).
        quantization_method: How the weights were prepared for int8, one of
            `config.QUANTIZATION_METHODS`; "" if they were not, or if no file tells.
        asked_engine: The engine it was prepared for, if several load its kind.
    """

    name: str
    kind: ModelKind
    folder: Path
    tokenizer_folder: Path
    quantization: str
    fingerprint: str
    bytes_on_disk: int
    quantization_method: str = ""
    asked_engine: str = ""

    @property
    def engine(self) -> str:
        """Name of the engine that loads it."""
        return self.asked_engine or default_engine(self.kind)

    @property
    def has_files(self) -> bool:
        """Whether there is a real model."""
        return self.kind != NO_MODEL

    def codec(self) -> Codec:
        """Load the model's tokenizer."""
        return HuggingFaceCodec(self.tokenizer_folder) if self.has_files else ByteCodec()


def model_without_files(name: str, engine: str) -> PreparedModel:
    """Return the model of an engine that reads no files: the same for every name."""
    nothing = Path()
    return PreparedModel(
        name=name,
        kind=NO_MODEL,
        folder=nothing,
        tokenizer_folder=nothing,
        quantization="float32",
        fingerprint=hashlib.sha256(engine.encode()).hexdigest(),
        bytes_on_disk=0,
        asked_engine=engine,
    )
