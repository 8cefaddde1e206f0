"""Configuration of an assessment; the command line takes its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from packhorse.config import (
    ALLOW_PICKLE_OPTION,
    CSV_QUOTING_OPTION,
    EMBEDDINGS_OPTION,
    MODEL_OPTION,
    BatchingConfig,
    CsvQuoting,
    EngineConfig,
)

DEFAULT_EMBEDDINGS = "all-minilm-l6-v2"


@dataclass(frozen=True, slots=True)
class AssessConfig:
    """Which model is compared with classic classifiers on which labelled rows.

    Attributes:
        labelled: a CSV, TSV, Parquet or JSONL file.
        group_column: rows of one group are never split between training and test.
        instruction: prompt of the language model; the labels are added.
        label_names: (label, words) pairs: the words the model reads and writes for a label.
        embeddings: catalog name or sentence-transformers folder; None leaves that contestant out.
            An unavailable default is left out, too.
        margin: accuracy difference (0 to 1) that still counts as equal.
        max_p95: seconds that 95 % of single rows must not exceed.
        volume: rows per month.
        price_core_hour: in any one currency, as price_label.
        model_rows: test rows for the language model; None: as many as fit into max_minutes.
        shots: examples per class in the few-shot prompt.
        max_text_tokens: tokens of a text that the model reads.
        max_rows: usable rows that are drawn if there are more.
        csv_quoting: as in InputConfig.
    """

    model: str = field(metadata=MODEL_OPTION)
    labelled: str = field(
        metadata={"help": "file of labelled rows: CSV, TSV, Parquet or JSONL", "type": str}
    )
    text_column: str = field(
        default="text", metadata={"metavar": "NAME", "help": "column or field that holds the text"}
    )
    label_column: str = field(
        default="label",
        metadata={"metavar": "NAME", "help": "column or field that holds the correct label"},
    )
    group_column: str | None = field(
        default=None,
        metadata={
            "metavar": "NAME",
            "help": "never split rows with the same value of this column between training and test",
        },
    )
    output: Path = field(
        default=Path("assessment"),
        metadata={
            "flags": ("-o", "--output"),
            "metavar": "FOLDER",
            "help": "write reports and the saved winner to this folder",
        },
    )
    instruction: str | None = field(
        default=None, metadata={"help": "instruction for the language model; the labels are added"}
    )
    label_names: tuple[tuple[str, str], ...] = field(
        default=(),
        metadata={
            "flags": ("--label-name",),
            "metavar": "LABEL=WORDS",
            "repeatable": True,
            "help": "words that the language model reads and writes for a label; once per label",
        },
    )
    engine: EngineConfig = field(default_factory=EngineConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    embeddings: str | None = field(default=DEFAULT_EMBEDDINGS, metadata=EMBEDDINGS_OPTION)
    margin: float = field(
        default=0.01,
        metadata={
            "metavar": "SHARE",
            "help": "treat an accuracy lower by at most this share as equally good",
        },
    )
    max_p95: float | None = field(
        default=None,
        metadata={
            "metavar": "S",
            "help": "require a p95 latency of at most S seconds for single rows",
        },
    )
    volume: float | None = field(
        default=None,
        metadata={
            "metavar": "ROWS",
            "help": "estimate the cost per month for this many rows per month",
        },
    )
    price_core_hour: float | None = field(
        default=None, metadata={"metavar": "MONEY", "help": "price of one core for one hour"}
    )
    price_label: float | None = field(
        default=None,
        metadata={"metavar": "MONEY", "help": "price of labelling one row, in the same currency"},
    )
    model_rows: int | None = field(
        default=None,
        metadata={
            "help": "test the language model on N rows, regardless of time",
            "default": "as many as --max-minutes allows",
        },
    )
    max_minutes: float = field(
        default=8.0,
        metadata={
            "metavar": "M",
            "help": "time for the language model; determines its number of test rows",
        },
    )
    shots: int = field(
        default=2, metadata={"help": "put N examples of each label into the few-shot prompt"}
    )
    max_text_tokens: int = field(
        default=1024, metadata={"help": "cut texts for the language model to N tokens"}
    )
    max_rows: int = field(default=20_000, metadata={"help": "draw N rows if there are more"})
    seed: int = field(default=0, metadata={"help": "seed of all splits and draws"})
    allow_pickle: bool = field(default=False, metadata=ALLOW_PICKLE_OPTION)
    command: str = ""
    csv_quoting: CsvQuoting = field(default="auto", metadata=CSV_QUOTING_OPTION)
