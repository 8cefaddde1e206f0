"""Configuration of an assessment; the command line takes its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from packhorse.config import BatchingConfig, CsvQuoting, EngineConfig

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

    model: str
    labelled: str
    text_column: str = "text"
    label_column: str = "label"
    group_column: str | None = None
    output: Path = Path("assessment")
    instruction: str | None = None
    label_names: tuple[tuple[str, str], ...] = ()
    engine: EngineConfig = field(default_factory=EngineConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    embeddings: str | None = DEFAULT_EMBEDDINGS
    margin: float = 0.01
    max_p95: float | None = None
    volume: float | None = None
    price_core_hour: float | None = None
    price_label: float | None = None
    model_rows: int | None = None
    max_minutes: float = 8.0
    shots: int = 2
    max_text_tokens: int = 1024
    max_rows: int = 20_000
    seed: int = 0
    allow_pickle: bool = False
    command: str = ""
    csv_quoting: CsvQuoting = "auto"
