"""Options that several verbs share, and how they become configs. Defaults are the configs' own."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

from packhorse.batching import AUTO, POLICIES
from packhorse.config import (
    CSV_QUOTINGS,
    DEVICES,
    ON_TOO_LONG,
    QUANTIZATION_METHODS,
    QUANTIZATIONS,
    ROW_OPTIONS,
    BatchingConfig,
    EngineConfig,
    InputConfig,
)
from packhorse.data import SamplingParams
from packhorse.engine_protocol.registry import BUILT_IN, engine_names, model_engines


def default(config: type[Any], name: str) -> Any:
    """The default of a config's field."""
    for field in fields(config):
        if field.name == name:
            factory = field.default_factory
            return factory() if factory is not MISSING else field.default
    raise AssertionError(f"{config.__name__} has no field {name}")


def names(text: str) -> tuple[str, ...]:
    """A list on the command line: names with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def engine(name: str) -> str:
    """The name of an engine on the command line. Imports none."""
    if name != "auto" and name not in BUILT_IN and name not in engine_names():
        known = ", ".join(("auto", *engine_names()))
        raise argparse.ArgumentTypeError(f"unknown engine {name!r} (known: {known})")
    return name


def engine_with_model(name: str) -> str:
    """The name of an engine that runs a model."""
    if name in BUILT_IN and name not in ("auto", *model_engines()):
        raise argparse.ArgumentTypeError(f"the engine {name!r} takes no model")
    return engine(name)


def engine_list(names: Sequence[str]) -> str:
    """Engines as argparse shows choices."""
    return f"{{{','.join(('auto', *names))}}}"


def text(given: str) -> str:
    """A text on the command line, whatever the locale.

    In an ASCII locale Python hands over the bytes of UTF-8 as half surrogate pairs. Not for paths,
    which the operating system takes that way.
    """
    try:
        given.encode("utf-8")
    except UnicodeEncodeError:
        try:
            return os.fsencode(given).decode("utf-8")
        except UnicodeError:
            raise argparse.ArgumentTypeError(f"must be UTF-8 text, got {given!a}") from None
    return given


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        type=engine,
        metavar=engine_list(BUILT_IN),
        default=default(EngineConfig, "engine"),
        help="engine, built-in or registered by an installed package (default: %(default)s)",
    )
    group.add_argument("--device", choices=DEVICES, default=default(EngineConfig, "device"))
    group.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default=default(EngineConfig, "quantization"),
        help="number format of weights and products (default: what costs no accuracy)",
    )
    add_method_option(group)
    group.add_argument("--workers", type=int, metavar="N", help="batches in flight at once")
    group.add_argument("--threads", type=int, metavar="N", help="threads of each worker")
    group.add_argument(
        "--cache-gb",
        type=float,
        metavar="GB",
        help="memory for keys and values of the packed engine, allocated once (default: what "
        "65,536 tokens take, at most half of what is free)",
    )
    add_pickle_option(group)


def add_pickle_option(group: Any) -> None:
    group.add_argument(
        "--allow-pickle",
        action="store_true",
        help="accept PyTorch .bin weights where there is no safetensors file",
    )


def add_method_option(group: Any) -> None:
    group.add_argument(
        "--quantization-method",
        choices=QUANTIZATION_METHODS,
        default=default(EngineConfig, "quantization_method"),
        help="how a model is made ready for int8 on ctranslate2 and packed (default: what "
        "packhorse quantize found, else the best its family can have)",
    )


def add_batching_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("batching")
    group.add_argument(
        "--batching",
        choices=(AUTO, *POLICIES),
        default=default(BatchingConfig, "policy"),
        help="how rows are put into batches (default: what suits the engine: planned for "
        "ctranslate2, sorted-dynamic for transformers, continuous for packed)",
    )
    group.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        default=default(BatchingConfig, "batch_size"),
        help="rows a batch, for fixed and sorted (default: %(default)s)",
    )
    group.add_argument(
        "--max-batch-tokens",
        type=int,
        metavar="N",
        help="tokens a batch, padding and new tokens included, for dynamic, sorted-dynamic and "
        "planned (default: from free memory and the engine)",
    )
    group.add_argument(
        "--window-rows",
        type=int,
        metavar="N",
        default=default(BatchingConfig, "window_rows"),
        help="rows read and planned together (default: %(default)s)",
    )
    group.add_argument(
        "--no-share-prefixes",
        action="store_true",
        help="compute what prompts begin with in common once a row, not once",
    )
    group.add_argument(
        "--no-deduplicate", action="store_true", help="run equal rows each for itself"
    )


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding (a row's own options go before these)")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        default=default(SamplingParams, "max_new_tokens"),
        help="tokens generated at most (default: %(default)s)",
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        default=default(SamplingParams, "temperature"),
        help="0 is greedy, the default",
    )
    group.add_argument("--top-p", type=float, metavar="P", default=default(SamplingParams, "top_p"))
    group.add_argument("--top-k", type=int, metavar="K", default=default(SamplingParams, "top_k"))
    group.add_argument("--seed", type=int, metavar="N", help="makes sampling repeatable")
    group.add_argument(
        "--stop",
        type=text,
        action="append",
        default=[],
        metavar="TEXT",
        help="end a row before this text; may be given several times",
    )


def add_reading_options(parser: argparse.ArgumentParser) -> Any:
    group = parser.add_argument_group("input")
    group.add_argument(
        "--prompt-column", type=text, metavar="NAME", help="column or field of the prompt"
    )
    group.add_argument(
        "--template",
        type=text,
        metavar="TEXT",
        help='prompt built from fields: "Summarise: {text}"',
    )
    group.add_argument(
        "--system", type=text, metavar="TEXT", help="system message for rows without one"
    )
    group.add_argument("--limit", type=int, metavar="N", help="read at most N rows")
    add_csv_quoting_option(group)
    group.add_argument(
        "--on-too-long",
        choices=ON_TOO_LONG,
        default=default(InputConfig, "on_too_long"),
        help="what to do with a prompt that does not fit (default: %(default)s)",
    )
    add_row_options(group)
    add_date_option(group)
    return group


def add_csv_quoting_option(group: Any) -> None:
    group.add_argument(
        "--csv-quoting",
        choices=CSV_QUOTINGS,
        default=default(InputConfig, "csv_quoting"),
        help="minimal: cells may stand in double quotes; none: quotes are ordinary characters and "
        "a line is a row (default: auto, which is none for .tsv and minimal for .csv)",
    )


def add_served_model_name_option(group: Any) -> None:
    group.add_argument(
        "--served-model-name",
        type=text,
        action="append",
        default=[],
        metavar="NAME",
        help="accept OpenAI batch lines that name this model, e.g. gpt-4o-mini; repeatable "
        "(default: only the names of MODEL)",
    )


def add_date_option(group: Any) -> None:
    group.add_argument(
        "--date",
        metavar="DATE",
        help="date that chat templates write, as 2026-01-31 or with a time (default: when the job "
        "begins; a resumed job keeps it)",
    )


def add_row_options(group: Any) -> None:
    group.add_argument(
        "--row-options",
        choices=ROW_OPTIONS,
        default=default(InputConfig, "row_options"),
        help="whether fields named like options (temperature, stop, ...) are options of their row: "
        "yes, no (they are data), or auto: yes in rows of known fields only, else the row is "
        "refused (default: %(default)s)",
    )


def engine_config(options: argparse.Namespace) -> EngineConfig:
    cache_bytes = None if options.cache_gb is None else round(options.cache_gb * 1e9)
    return EngineConfig(
        options.engine,
        options.device,
        options.quantization,
        options.workers,
        options.threads,
        options.quantization_method,
        cache_bytes,
    )


def batching_config(options: argparse.Namespace) -> BatchingConfig:
    return BatchingConfig(
        options.batching,
        options.batch_size,
        options.max_batch_tokens,
        options.window_rows,
        share_prefixes=not options.no_share_prefixes,
        deduplicate=not options.no_deduplicate,
    )


def decoding_config(options: argparse.Namespace) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        stop=tuple(options.stop),
    )


def reading_config(options: argparse.Namespace) -> InputConfig:
    return InputConfig(
        prompt_column=options.prompt_column,
        template=options.template,
        system=options.system,
        limit=options.limit,
        on_too_long=options.on_too_long,
        csv_quoting=options.csv_quoting,
        served_model_name=tuple(options.served_model_name),
        date=options.date,
        row_options=options.row_options,
    )
