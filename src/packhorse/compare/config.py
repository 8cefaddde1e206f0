"""What a comparison is: frozen, inert. The command line reads its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from packhorse.batching import POLICIES
from packhorse.compare.recommend import UserLimits
from packhorse.config import InputConfig
from packhorse.engine_protocol.registry import model_engines


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """Which techniques to compare on which rows.

    engines x quantizations x batchings is the grid; a format an engine does not know is left out.
    sample: rows drawn from the input. repeats: runs of every combination. warmup_rows: rows run
    before timing starts, in every process. reference: "ENGINE:FORMAT", run with batching `single`.
    embeddings: catalog name or sentence-transformers folder; None leaves cosines out. labels: field
    of the input that holds the right answer of a row. teacher_forcing: score the reference's text
    with every engine and format. resume: keep the repeats that an interrupted comparison finished.
    allow_pickle: accept PyTorch .bin weights where there is no safetensors file.
    """

    model: str
    input: str
    output: Path = Path("report")
    engines: tuple[str, ...] = field(default_factory=model_engines)
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
