"""What preparing a model comes to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from packhorse.engine_protocol.registry import NO_MODEL, ModelKind, default_engine
from packhorse.tokenization import ByteCodec, Codec, HuggingFaceCodec

Report = Callable[[str], None]
"""Is told in one line what takes long or went differently than expected."""


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A verified folder that an engine can load.

    name: what the person said.
    folder, tokenizer_folder: weights, and what transformers' AutoTokenizer loads.
    quantization: number format of the stored weights ("float32", "bfloat16", "int8", ...), or
        "as stored" where a file does not tell.
    fingerprint: sha256 (hex) over the names and digests of all files that decide a result.
    bytes_on_disk: size of those files (bytes).
    quantization_method: how the weights were made ready for int8, a name of
        `packhorse.config.QUANTIZATION_METHODS`; "" where they were not, or nothing tells.
    asked_engine: the engine it was prepared for, where several load its kind.
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
        """The engine that loads it."""
        return self.asked_engine or default_engine(self.kind)

    @property
    def has_files(self) -> bool:
        """Whether there is a real model."""
        return self.kind != NO_MODEL

    def codec(self) -> Codec:
        """The model's tokenizer, loaded."""
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
