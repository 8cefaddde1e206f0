"""Combinations that a comparison tries, and the command line of each."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from packhorse.batching import POLICIES
from packhorse.batching.policies import CONTINUOUS, PLANNED
from packhorse.config import QUANTIZATION_METHODS, QUANTIZATIONS, EngineConfig, InputConfig
from packhorse.data import SamplingParams
from packhorse.engine_protocol.registry import (
    BUILT_IN,
    EngineEntry,
    built_in_engines,
    engine_entry,
)
from packhorse.errors import ConfigError

REFERENCE_BATCHING = "single"


@dataclass(frozen=True, slots=True)
class Combination:
    """An engine, a number format and a batching policy to try.

    Attributes:
        quantization: a format, or, for int8, "FORMAT:METHOD" (see EngineConfig).
        batch_size, max_batch_tokens: as in BatchingConfig.
    """

    engine: str
    quantization: str
    batching: str
    batch_size: int
    max_batch_tokens: int | None = None

    @property
    def name(self) -> str:
        return f"{self.engine} {self.quantization} {self.batching}"

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "-").replace(":", "-")

    def options(self) -> list[str]:
        """Return the options of `packhorse run` that select this combination."""
        form, _, method = self.quantization.partition(":")
        chosen = ["--engine", self.engine, "--quantization", form]
        if method:
            chosen += ["--quantization-method", method]
        chosen += ["--batching", self.batching]
        if self.batching in ("fixed", "sorted"):
            chosen += ["--batch-size", str(self.batch_size)]
        counts_tokens = self.batching in ("dynamic", "sorted-dynamic", PLANNED)
        if self.max_batch_tokens is not None and counts_tokens:
            chosen += ["--max-batch-tokens", str(self.max_batch_tokens)]
        return chosen

    def command(
        self,
        model: str,
        source: str,
        decoding: SamplingParams,
        reading: InputConfig,
        *,
        allow_pickle: bool = False,
    ) -> str:
        """Return the `packhorse run` command that uses this combination on the user's own file."""
        words = ["packhorse", "run", model, source, "-o", "answers.jsonl", *self.options()]
        words += ["--max-new-tokens", str(decoding.max_new_tokens)]
        words += option_words(decoding, SamplingParams(decoding.max_new_tokens))
        words += option_words(reading, InputConfig())
        words += ["--allow-pickle"] if allow_pickle else []
        return shlex.join(words)


def option_words(chosen: Any, usual: Any) -> Iterator[str]:
    """Yield an option of `packhorse run` for every field that differs from its default.

    Fields without an option, such as log-probabilities, are set by rows.

    Args:
        chosen: A config.
        usual: The same with defaults.
    """
    for field in fields(chosen):
        value, default = getattr(chosen, field.name), getattr(usual, field.name)
        if value == default:
            continue
        if is_dataclass(value):
            yield from option_words(value, default)
        if "help" not in field.metadata:
            continue
        (option,) = field.metadata.get("flags", (f"--{field.name.replace('_', '-')}",))
        if isinstance(value, bool):
            yield option
            continue
        for text in _option_values(value, is_repeatable="repeatable" in field.metadata):
            yield from [f"{option}={text}"] if text.startswith("-") else [option, text]


def _option_values(value: Any, *, is_repeatable: bool) -> list[str]:
    """Return the texts of an option, one for each time that it is given."""
    if isinstance(value, Mapping):
        return [f"{name}={json.dumps(each)}" for name, each in value.items()]
    if not isinstance(value, tuple):
        return [str(value)]
    texts = ["=".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value]
    return texts if is_repeatable else [",".join(texts)]


def combinations(
    engines: Sequence[str],
    quantizations: Sequence[str],
    batchings: Sequence[str],
    batch_size: int,
    max_batch_tokens: int | None = None,
) -> list[Combination]:
    """Return every engine x number format that it runs x policy that it takes, in that order.

    What an engine does not run is left out of the grid. A continuous engine takes the policy
    `continuous` only, and no other engine takes it.

    Raises:
        ConfigError: a name is unknown, or the grid is empty.
    """
    entries = [engine_entry(name) for name in dict.fromkeys(engines)]
    _require_known("quantization", quantizations, _with_methods(QUANTIZATIONS[1:]))
    _require_known("batching policy", batchings, list(POLICIES))
    grid = [
        Combination(entry.name, quantization, batching, batch_size, max_batch_tokens)
        for entry in entries
        for quantization in dict.fromkeys(quantizations)
        if quantization in _formats(entry)
        for batching in dict.fromkeys(batchings)
        if entry.takes_policy(batching)
    ]
    if not grid:
        shown = [*built_in_engines(), *(each for each in entries if each.name not in BUILT_IN)]
        continuous = [each.name for each in shown if each.is_continuous]
        raise ConfigError(
            f"no engine of {', '.join(engines)} runs {', '.join(quantizations)} in batches "
            f"{', '.join(batchings)}",
            "; ".join(f"{each.name}: {', '.join(_formats(each))}" for each in shown)
            + f"; only {CONTINUOUS} batching: {', '.join(continuous)}",
        )
    return grid


def engine_config(engine: str, quantization: str) -> EngineConfig:
    """Return the config of an engine with "FORMAT" or "FORMAT:METHOD"."""
    form, _, method = quantization.partition(":")
    return EngineConfig(engine, quantization=form, quantization_method=method or "auto")


def _formats(entry: EngineEntry) -> Sequence[str]:
    """What may be asked of an engine: "FORMAT", and "FORMAT:METHOD" if it takes methods."""
    formats = entry.number_formats
    return _with_methods(formats) if entry.takes_quantization_methods else formats


def _with_methods(formats: Sequence[str]) -> list[str]:
    """Formats, and int8 formats with every method."""
    int8 = [name for name in formats if name.startswith("int8")]
    methods = [name for name in QUANTIZATION_METHODS if name != "auto"]
    return [*formats, *(f"{form}:{method}" for form in int8 for method in methods)]


def _require_known(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown {kind} {name!r}", f"known: {', '.join(known)}")


def packhorse_command(arguments: Sequence[str]) -> list[str]:
    """Return the command that runs `packhorse` of this installation in a new interpreter."""
    return [sys.executable, "-m", "packhorse", *arguments]
