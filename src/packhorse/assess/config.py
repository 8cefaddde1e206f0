"""What an assessment is: frozen, inert. The command line reads its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from packhorse.config import BatchingConfig, CsvQuoting, EngineConfig

DEFAULT_EMBEDDINGS = "all-minilm-l6-v2"


@dataclass(frozen=True, slots=True)
class AssessConfig:
    """Which model against which classic ones, on which labelled rows.

    labelled: a CSV, TSV, Parquet or JSONL file. group_column: rows of one group are never split
    between training and test. instruction: what the language model is told; the labels are added.
    label_names: (label, words) pairs: what the model reads and writes for a label. embeddings:
    catalog name or sentence-transformers folder; None leaves that contestant out, and so does the
    default where it cannot be had.
    margin: how much less accuracy (0 to 1) is still as good. max_p95: seconds of one row that 19
    of 20 rows must keep. volume: rows a month. price_core_hour, price_label: in any one currency.
    model_rows: test rows for the language model; None takes as many as it can do in max_minutes.
    shots: examples of each class in the few-shot prompt. max_text_tokens: the model reads that much
    of a text. max_rows: of more usable rows so many are drawn. csv_quoting: as of InputConfig.
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
