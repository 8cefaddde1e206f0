"""What a job is: frozen, composed, inert. All defaults are defined here.

"auto" (None for numbers) is resolved later by pure functions; the resolved values are printed and
saved with the results.

A field that has a command-line option describes it in its metadata; `packhorse.cli.options` adds
the option and reads it back. Flag, type and default come from the field itself.

    help        what the option does, in the imperative, without the default
    metavar     placeholder of the value, if not N (int), TEXT (str) or FILE (Path)
    choices     allowed values; those of a Literal are found by themselves
    flags       spellings, if not --FIELD-NAME (--no-FIELD-NAME for a flag that is on by default)
    aliases     older spellings, accepted but not shown
    default     how --help describes the default, if the value does not say it
    scale       value of the field per unit of the option (1e9: bytes per GB)
    none        the word that stands for None
    repeatable  the option is given once per item, instead of once with commas
    type        how the value is parsed, if the annotation does not say it
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from packhorse.data import SamplingParams
from packhorse.params.prompt_options import PromptOptions
from packhorse.storage.urls import file_or_url

OnTooLong = Literal["error", "truncate-left", "truncate-right"]
CsvQuoting = Literal["auto", "minimal", "none"]
RowOptions = Literal["auto", "yes", "no"]
MessagesFormat = Literal["auto", "openai", "sharegpt"]
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
OUTPUT_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv", ".csv.gz", ".csv.zst", ".parquet")

MODEL_OPTION = {
    "help": "model to use: catalog name (see packhorse models), hub id, folder or GGUF file",
    "type": str,
}
INPUT_OPTION = {
    "help": "file of rows, or its URL: JSONL, OpenAI batch lines, CSV, TSV, Parquet, text (one "
    "prompt per line), also compressed (.gz, .zst, .bz2, .xz); a folder or a pattern; or - for "
    "standard input",
    "type": str,
}
OUTPUT_OPTION = {
    "flags": ("-o", "--output"),
    "metavar": "OUTPUT",
    "help": "write results to this .jsonl, .csv or .parquet file, upload them to this URL, or "
    "write rows to standard output as they finish (-)",
    "type": file_or_url,
}
ENGINES_OPTION = {"metavar": "LIST", "help": "engines to try, with commas between them"}
QUANTIZATIONS_OPTION = {"metavar": "LIST", "help": "number formats to try"}
BATCHINGS_OPTION = {"metavar": "LIST", "help": "batching policies to try"}
ALLOW_PICKLE_OPTION = {
    "help": "accept PyTorch .bin weights if there is no safetensors file",
}
RETRY_FAILED_OPTION = {"help": "retry rows that failed in an earlier run"}
CSV_QUOTING_OPTION = {
    "help": "how cells are quoted. minimal: cells may stand in double quotes; none: quotes are "
    "ordinary characters and each line is a row",
    "default": "auto: none for .tsv, minimal for .csv",
}
EMBEDDINGS_OPTION = {
    "metavar": "MODEL",
    "help": "embedding model to use: catalog name or sentence-transformers folder, or none",
    "none": "none",
    "type": str,
}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Which engine runs the model, and on what device.

    Attributes:
        engine: "auto" is the fastest that runs the model with these options and costs no accuracy
            (`models.engine_support.choose_engine`).
        quantization: "auto" is float32 on a CPU and float16 on a GPU: what costs no accuracy.
        workers, threads: None is the fastest measured setting if the engine was calibrated, else
            one single-threaded worker per core for ctranslate2, one with all cores for
            transformers.
        quantization_method: How a model is prepared for int8 on ctranslate2 and packed; "auto" is
            what `packhorse quantize` found for it, else the best that its family supports.
        cache_bytes: Memory for the key-value cache of an engine that allocates it once (packed);
            None is what 65,536 tokens take, at most half of the free memory.
        verify: Compute the digests of all files of the model, even of those that kept inode, size
            and times since it was last done.
    """

    engine: str = field(
        default="auto",
        metadata={
            "help": "engine that runs the model",
            "default": "auto: the fastest that costs no accuracy; on a CPU the first of packed, "
            "ctranslate2, transformers that runs the model with these options",
        },
    )
    device: str = field(
        default="auto", metadata={"help": "device to run the model on", "choices": DEVICES}
    )
    quantization: str = field(
        default="auto",
        metadata={
            "help": "number format of weights and matrix products",
            "choices": QUANTIZATIONS,
            "default": "auto: the format that costs no accuracy",
        },
    )
    workers: int | None = field(
        default=None,
        metadata={
            "help": "run N batches at the same time",
            "default": "the fastest measured, else set by the engine",
        },
    )
    threads: int | None = field(
        default=None,
        metadata={
            "help": "use N threads per worker",
            "default": "the fastest measured, else set by the engine",
        },
    )
    quantization_method: str = field(
        default="auto",
        metadata={
            "help": "how to prepare a model for int8 on ctranslate2 and packed",
            "choices": QUANTIZATION_METHODS,
            "default": "auto: what packhorse quantize found, else the best for the model's family",
        },
    )
    cache_bytes: int | None = field(
        default=None,
        metadata={
            "flags": ("--cache-gb",),
            "metavar": "GB",
            "scale": 1e9,
            "help": "allocate this much memory for the key-value cache of the packed engine",
            "default": "enough for 65,536 tokens, at most half of the free memory",
        },
    )
    verify: bool = field(
        default=False,
        metadata={"help": "verify every byte of the model, even of files that did not change"},
    )


@dataclass(frozen=True, slots=True)
class BatchingConfig:
    """How rows are grouped into batches.

    Attributes:
        policy: A name of `packhorse.batching.POLICIES`; "auto" is continuous for an engine that
            rows join and leave at every step, planned for one that computes prompts past the
            shortest of a batch token by token, and sorted-dynamic for all others.
        batch_size: Rows per batch, for the policies that count rows.
        max_batch_tokens: Tokens per batch, padding and tokens still to be generated included, for
            the policies that count tokens; None is derived from free memory and the engine.
        window_rows: Rows read, tokenized and planned together; bounds the memory for prompts.
        share_prefixes: Compute leading tokens that rows have in common once, not once per row.
        deduplicate: Run rows with equal prompts and equal settings once if decoding draws no random
            numbers, or draws them from a seed per row.
    """

    policy: str = field(
        default="auto",
        metadata={
            "flags": ("--batching",),
            "help": "policy that groups rows into batches",
            "default": "auto: planned for ctranslate2, sorted-dynamic for transformers, continuous "
            "for packed",
        },
    )
    batch_size: int = field(
        default=8, metadata={"help": "rows per batch, for the policies fixed and sorted"}
    )
    max_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "tokens per batch, padding and new tokens included, for the policies dynamic, "
            "sorted-dynamic and planned",
            "default": "from free memory and the engine",
        },
    )
    window_rows: int = field(default=4096, metadata={"help": "read and plan N rows together"})
    share_prefixes: bool = field(
        default=True,
        metadata={"help": "recompute shared prompt prefixes for every row instead of caching them"},
    )
    deduplicate: bool = field(
        default=True, metadata={"help": "run every row, even if an equal row was run"}
    )


@dataclass(frozen=True, slots=True)
class InputConfig:
    """How the input becomes prompts.

    Attributes:
        prompt_column: Column (CSV, Parquet) or field (JSONL) that holds the prompt.
        id_column: Column or field that holds the id of a row; None is "id", which may be missing.
        template: Builds the prompt from a row's fields, e.g. "Summarise: {text}".
        system: System message for rows that have none (chat models only).
        limit: Maximum number of rows to read.
        csv_quoting: How cells of CSV and TSV are quoted: "minimal" (a cell may stand in double
            quotes, RFC 4180), "none" (a quote is a character, one line is one row), or "auto": none
            for .tsv, minimal for .csv.
        served_model_name: Names that OpenAI batch lines may give the model; jobs that run a model
            add its own (`packhorse.inputs.for_model`). () allows every name.
        batch_endpoint: The only url that OpenAI batch lines may have; None allows every known one.
        date: Local date, or date and time, in ISO 8601 that chat templates write; None is the
            moment when the job starts, kept in its journal.
        row_options: Whether fields of a row that are named like options are options. "auto": they
            are in a row of which all fields are known; beside other fields they are refused, since
            they may be data as well.
    """

    prompt_column: str | None = field(
        default=None,
        metadata={
            "metavar": "NAME",
            "help": "column or field that holds the prompt or messages; data.question is a field "
            "inside another",
        },
    )
    template: str | None = field(
        default=None,
        metadata={"help": 'build the text from the fields of a row: "Summarise: {text}"'},
    )
    system: str | None = field(
        default=None, metadata={"help": "system message for rows without one"}
    )
    limit: int | None = field(default=None, metadata={"help": "read at most N rows"})
    on_too_long: OnTooLong = field(
        default="error", metadata={"help": "what to do with a prompt that does not fit"}
    )
    id_column: str | None = field(
        default=None,
        metadata={
            "metavar": "NAME",
            "help": "column or field that holds the id of a row",
            "default": "id, if there is one",
        },
    )
    csv_quoting: CsvQuoting = field(default="auto", metadata=CSV_QUOTING_OPTION)
    served_model_name: tuple[str, ...] = field(
        default=(),
        metadata={
            "metavar": "NAME",
            "repeatable": True,
            "help": "accept OpenAI batch lines that name this model, e.g. gpt-4o-mini; repeatable",
            "default": "only the names of MODEL",
        },
    )
    batch_endpoint: str | None = None
    date: str | None = field(
        default=None,
        metadata={
            "metavar": "DATE",
            "help": "date that chat templates write: 2026-01-31, or with a time",
            "default": "the start of the job, also when it is resumed",
        },
    )
    row_options: RowOptions = field(
        default="auto",
        metadata={
            "help": "whether fields named like options (temperature, stop, ...) are options of "
            "their row: yes, no (they are data), or auto: yes in rows of known fields only, else "
            "the row is refused"
        },
    )
    messages_format: MessagesFormat = field(
        default="auto",
        metadata={
            "help": "how messages are stored: openai (role, content) or sharegpt (from, value; "
            "the field conversations); also reads messages in columns of JSON text",
            "default": "auto: openai, in a list or a field called messages",
        },
    )
    prompts: PromptOptions = field(default_factory=PromptOptions)


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """Which columns the output has. They may change from run to run: they decide no result.

    Attributes:
        keep: Columns of the input that the output repeats: their names, "all", "none", or "auto":
            all if the prompt is made with `prompt_column` or `template`, else none.
        output_column: Name of the column that holds the generated text.
    """

    keep: str | tuple[str, ...] = field(
        default="auto",
        metadata={
            "metavar": "COLUMNS",
            "help": "columns or fields of the input that the output repeats: all, none, or names "
            "with commas between them",
            "default": "all with --prompt-column or --template, else none",
        },
    )
    output_column: str = field(
        default="text", metadata={"metavar": "NAME", "help": "name of the column of the answers"}
    )


@dataclass(frozen=True, slots=True)
class JobConfig:
    """One run: a model over an input into an output.

    Attributes:
        model: A catalog name, a hub id, or a folder or GGUF file on this machine.
        input: A .jsonl, .csv, .tsv, .parquet or .txt file, its URL, a folder of such files, a
            pattern like "data/*.csv", or "-" for standard input (JSONL or text).
        output: A .jsonl, .csv or .parquet file; its journal is in OUTPUT.packhorse/ beside it. Or
            its URL; the journal is then in the current folder. "-" is standard output.
        retry_failed: Run rows again that failed in an earlier run.
        allow_pickle: Accept PyTorch .bin weights (read with weights_only) if there is no
            safetensors file.
        warmup_rows: Rows run once, unrecorded, before timing starts (for measurements).
        more_inputs: Further inputs of the same format, read after the first.
        ordered: Write rows to standard output in the order of the input, not as they finish.
    """

    model: str = field(metadata=MODEL_OPTION)
    input: str = field(metadata=INPUT_OPTION)
    output: Path | str = field(metadata=OUTPUT_OPTION)
    engine: EngineConfig = field(default_factory=EngineConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    decoding: SamplingParams = field(default_factory=SamplingParams)
    reading: InputConfig = field(default_factory=InputConfig)
    writing: OutputConfig = field(default_factory=OutputConfig)
    retry_failed: bool = field(default=False, metadata=RETRY_FAILED_OPTION)
    allow_pickle: bool = field(default=False, metadata=ALLOW_PICKLE_OPTION)
    warmup_rows: int = field(
        default=0,
        metadata={
            "flags": ("--warm-up-rows",),
            "help": "run N rows unrecorded before timing starts",
        },
    )
    more_inputs: tuple[str, ...] = ()
    ordered: bool = field(
        default=False, metadata={"help": "with -o -: write rows in the order of the input"}
    )
