"""What a job is: frozen, composed, inert. Defaults live here only; the command line reads them.

"auto" (None for numbers) is resolved later by pure functions, and what it became is printed and
saved with the results.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from packhorse.data import SamplingParams

OnTooLong = Literal["error", "truncate-left", "truncate-right"]
CsvQuoting = Literal["auto", "minimal", "none"]
RowOptions = Literal["auto", "yes", "no"]
DEVICES = ("auto", "cpu", "cuda")
QUANTIZATIONS = (
    "auto",
    "float32",
    "bfloat16",
    "float16",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
    "int16",
)
QUANTIZATION_METHODS = ("auto", "plain", "smooth", "rotate", "rotate-smooth")
CSV_QUOTINGS: tuple[CsvQuoting, ...] = ("auto", "minimal", "none")
ON_TOO_LONG: tuple[OnTooLong, ...] = ("error", "truncate-left", "truncate-right")
ROW_OPTIONS: tuple[RowOptions, ...] = ("auto", "yes", "no")
OUTPUT_SUFFIXES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Which engine runs the model, and on what.

    engine: "auto" is ctranslate2 for a CTranslate2 folder and transformers for everything else.
    quantization: "auto" is float32 on a CPU and float16 on a GPU: what costs no accuracy.
    quantization_method: how a model is made ready for int8 on ctranslate2 and packed; "auto" is
        what `packhorse quantize` found for it, else the best its family can have.
    workers, threads: None is the fastest that was measured where the engine was calibrated, else
        one single-threaded worker a core for ctranslate2, one with all cores for transformers.
    cache_bytes: memory for keys and values, for an engine that allocates it once (packed); None is
        what 65,536 tokens take, at most half of what is free.
    """

    engine: str = "auto"
    device: str = "auto"
    quantization: str = "auto"
    workers: int | None = None
    threads: int | None = None
    quantization_method: str = "auto"
    cache_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class BatchingConfig:
    """How rows are put into batches.

    policy: a name of `packhorse.batching.POLICIES`; "auto" is continuous for an engine that rows
        join and leave at every step, planned for one that computes prompts past the shortest of a
        batch token by token, and sorted-dynamic for all others.
    batch_size: rows a batch, for the policies that count rows.
    max_batch_tokens: tokens a batch, padding and tokens still to be generated included, for the
        policies that count tokens; None is derived from free memory and the engine.
    window_rows: rows read, tokenized and planned together; memory for prompts is bounded by it.
    share_prefixes: leading tokens that rows have in common are computed once, not once a row.
    deduplicate: rows with equal prompts and equal settings are run once where decoding draws no
        random numbers, or draws them from a seed of their own.
    """

    policy: str = "auto"
    batch_size: int = 8
    max_batch_tokens: int | None = None
    window_rows: int = 4096
    share_prefixes: bool = True
    deduplicate: bool = True


@dataclass(frozen=True, slots=True)
class InputConfig:
    """How the input becomes prompts.

    prompt_column: column (CSV, Parquet) or field (JSONL) that holds the prompt.
    template: builds the prompt from a row's fields, e.g. "Summarise: {text}".
    system: system message put before rows that have none (chat models only).
    limit: rows read at most.
    csv_quoting: how cells of CSV and TSV are quoted: "minimal" (a cell may stand in double quotes,
        RFC 4180), "none" (a quote is a character, one line is one row), or "auto": none for .tsv,
        minimal for .csv.
    served_model_name: names that OpenAI batch lines may give the model; jobs that run a model add
        its own (`packhorse.inputs.for_model`). () allows every name.
    batch_endpoint: the only url that OpenAI batch lines may have; None allows each that is known.
    date: local date, or date and time, in ISO 8601 that chat templates write; None is the moment
        at which the job begins, kept in its journal.
    row_options: whether fields of a row that are named like options are options. "auto": they are
        in a row of which all fields are known, and beside other fields they are refused, since
        they may be data as well.
    """

    prompt_column: str | None = None
    template: str | None = None
    system: str | None = None
    limit: int | None = None
    on_too_long: OnTooLong = "error"
    csv_quoting: CsvQuoting = "auto"
    served_model_name: tuple[str, ...] = ()
    batch_endpoint: str | None = None
    date: str | None = None
    row_options: RowOptions = "auto"


@dataclass(frozen=True, slots=True)
class JobConfig:
    """One run: a model over an input into an output.

    model: a catalog name, a hub id, or a folder or GGUF file on this machine.
    input: a .jsonl, .csv, .parquet or .txt file, or "-" for standard input (JSONL or text).
    output: a .jsonl, .csv or .parquet file; its journal lies beside it in OUTPUT.packhorse/.
    warmup_rows: rows run once, unrecorded, before timing starts (for measurements).
    allow_pickle: accept PyTorch .bin weights (read with weights_only) where there is no
        safetensors file.
    """

    model: str
    input: str
    output: Path
    engine: EngineConfig = field(default_factory=EngineConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    decoding: SamplingParams = field(default_factory=SamplingParams)
    reading: InputConfig = field(default_factory=InputConfig)
    retry_failed: bool = False
    allow_pickle: bool = False
    warmup_rows: int = 0
