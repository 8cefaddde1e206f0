"""Configuration of a comparison; the command line takes its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from packhorse.batching import POLICIES
from packhorse.compare.verdict import UserLimits
from packhorse.config import (
    ALLOW_PICKLE_OPTION,
    BATCHINGS_OPTION,
    EMBEDDINGS_OPTION,
    ENGINES_OPTION,
    INPUT_OPTION,
    MODEL_OPTION,
    QUANTIZATIONS_OPTION,
    InputConfig,
)
from packhorse.engine_protocol.registry import model_engines


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

    model: str = field(metadata=MODEL_OPTION)
    input: str = field(metadata=INPUT_OPTION)
    output: Path = field(
        default=Path("report"),
        metadata={
            "flags": ("-o", "--output"),
            "metavar": "FOLDER",
            "help": "write the reports to this folder",
        },
    )
    engines: tuple[str, ...] = field(
        default_factory=model_engines,
        metadata=ENGINES_OPTION,
    )
    quantizations: tuple[str, ...] = field(
        default=("float32", "int8"), metadata=QUANTIZATIONS_OPTION
    )
    batchings: tuple[str, ...] = field(default=tuple(POLICIES), metadata=BATCHINGS_OPTION)
    sample: int = field(default=64, metadata={"help": "draw N rows from the input"})
    repeats: int = field(default=3, metadata={"help": "run every combination N times, interleaved"})
    warmup_rows: int = field(
        default=2,
        metadata={
            "flags": ("--warm-up-rows",),
            "aliases": ("--warmup-rows",),
            "help": "run N rows unrecorded before timing starts, in every process",
        },
    )
    max_new_tokens: int = field(default=64, metadata={"help": "generate at most N tokens per row"})
    batch_size: int = field(
        default=8, metadata={"help": "rows per batch, for the policies fixed and sorted"}
    )
    max_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "tokens per batch, padding and new tokens included",
            "default": "from free memory and the engine",
        },
    )
    reference: str = field(
        default="transformers:float32",
        metadata={
            "metavar": "ENGINE:FORMAT",
            "help": "compare answers with those of this technique, run one row at a time",
        },
    )
    embeddings: str | None = field(default="all-minilm-l6-v2", metadata=EMBEDDINGS_OPTION)
    labels: str | None = field(
        default=None,
        metadata={
            "flags": ("--label-column",),
            "aliases": ("--labels",),
            "metavar": "NAME",
            "help": "column or field that holds the correct answer",
        },
    )
    teacher_forcing: bool = field(
        default=True, metadata={"help": "leave out KL divergence and top-1 agreement"}
    )
    limits: UserLimits = field(default_factory=UserLimits)
    reading: InputConfig = field(default_factory=InputConfig)
    resume: bool = field(default=False, metadata={"help": "continue an interrupted comparison"})
    allow_pickle: bool = field(default=False, metadata=ALLOW_PICKLE_OPTION)
    command: str = ""
