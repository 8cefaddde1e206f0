"""Configuration of a comparison; the command line takes its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from packhorse.batching import POLICIES
from packhorse.compare.verdict import UserLimits
from packhorse.config import MODEL_ENGINES, InputConfig


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """Which techniques to compare on which rows.

    The grid is engines x quantizations x batchings, without formats that an engine does not
    support.

    Attributes:
        sample: rows drawn from the input.
        repeats: runs of every combination.
        warmup_rows: rows run before timing starts, in every process.
        reference: "ENGINE:FORMAT", run with batching `single`.
        embeddings: catalog name or sentence-transformers folder; None: no cosine similarity.
        labels: input field with the correct answer of a row.
        teacher_forcing: score the reference's text with every engine and format.
        resume: keep the repeats that an interrupted comparison finished.
        allow_pickle: accept PyTorch .bin weights if there is no safetensors file.
    """

    model: str
    input: str
    output: Path = Path("report")
    engines: tuple[str, ...] = MODEL_ENGINES
    quantizations: tuple[str, ...] = ("float32", "int8")
    batchings: tuple[str, ...] = tuple(POLICIES)
    sample: int = 64
    repeats: int = 3
    warmup_rows: int = 2
    max_new_tokens: int = 64
    batch_size: int = 8
    max_batch_tokens: int | None = None
    reference: str = "transformers:float32"
    embeddings: str | None = "all-minilm-l6-v2"
    labels: str | None = None
    teacher_forcing: bool = True
    limits: UserLimits = field(default_factory=UserLimits)
    reading: InputConfig = field(default_factory=InputConfig)
    resume: bool = False
    allow_pickle: bool = False
    command: str = ""
