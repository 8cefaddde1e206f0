"""What preparing a model comes to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packhorse.tokenization import ByteCodec, Codec, HuggingFaceCodec

Kind = Literal["huggingface", "ctranslate2", "fake"]
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
    kind: Kind
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
        usual = "transformers" if self.kind == "huggingface" else self.kind
        return self.asked_engine or usual

    def codec(self) -> Codec:
        """The model's tokenizer, loaded."""
        return ByteCodec() if self.kind == "fake" else HuggingFaceCodec(self.tokenizer_folder)


def fake_model(name: str) -> PreparedModel:
    """What the fake engine runs: no files, the same whatever its name is."""
    nothing = Path()
    return PreparedModel(
        name=name,
        kind="fake",
        folder=nothing,
        tokenizer_folder=nothing,
        quantization="float32",
        fingerprint=hashlib.sha256(b"fake").hexdigest(),
        bytes_on_disk=0,
    )
