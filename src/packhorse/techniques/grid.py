"""Which combinations a comparison tries, and the command line of each."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from packhorse.batching import POLICIES
from packhorse.batching.policies import CONTINUOUS, PLANNED
from packhorse.config import ENGINES, QUANTIZATION_METHODS, QUANTIZATIONS, EngineConfig, InputConfig
from packhorse.data import SamplingParams
from packhorse.errors import ConfigError

REFERENCE_BATCHING = "single"


def _named_formats() -> list[str]:
    """Every format, and the int8 formats with every method."""
    formats = [name for name in QUANTIZATIONS if name != "auto"]
    int8 = [name for name in formats if name.startswith("int8")]
    methods = [name for name in QUANTIZATION_METHODS if name != "auto"]
    return formats + [f"{form}:{method}" for form in int8 for method in methods]


_PACKED_FORMATS = ("float32", "int8")
# What an engine can be asked for; what it cannot is left out of the grid, not tried and failed.
_FORMATS = {
    "transformers": ("float32", "bfloat16", "float16"),
    "ctranslate2": tuple(_named_formats()),
    "packed": tuple(name for name in _named_formats() if name.split(":")[0] in _PACKED_FORMATS),
    "fake": ("float32", "int8", "int16"),
}
_CONTINUOUS_ENGINES = ("packed",)
"""Rows join and leave them at every step, so that all other policies come to the same."""


@dataclass(frozen=True, slots=True)
class Combination:
    """One technique to be tried; `batch_size` and `max_batch_tokens` as in BatchingConfig.

    quantization: a format, or, for int8, "FORMAT:METHOD" (see EngineConfig).
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
        """The options of `packhorse run` that select this combination."""
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
        """The `packhorse run` line that uses this combination on the user's own file."""
        words = ["packhorse", "run", model, source, "-o", "answers.jsonl", *self.options()]
        words += ["--max-new-tokens", str(decoding.max_new_tokens)]
        words += [*_named(decoding, SamplingParams(decoding.max_new_tokens))]
        words += [*_named(reading, InputConfig()), *(["--allow-pickle"] if allow_pickle else [])]
        return shlex.join(words)


def _named(
    chosen: SamplingParams | InputConfig, usual: SamplingParams | InputConfig
) -> Iterator[str]:
    """The options of `packhorse run` for every field that is not the usual one; log-probabilities
    are asked for by rows, not by an option."""
    for field in fields(chosen):
        value = getattr(chosen, field.name)
        if value == getattr(usual, field.name) or field.name == "top_log_probs":
            continue
        option = f"--{field.name.replace('_', '-')}"
        for each in value if isinstance(value, tuple) else (value,):
            yield from [f"{option}={each}"] if str(each).startswith("-") else [option, str(each)]


def combinations(
    engines: Sequence[str],
    quantizations: Sequence[str],
    batchings: Sequence[str],
    batch_size: int,
    max_batch_tokens: int | None = None,
) -> list[Combination]:
    """Every engine x quantization it knows x batching that is its own, in that order.

    Raises ConfigError for an unknown name and for a grid without any combination.
    """
    _known("engine", engines, [name for name in ENGINES if name != "auto"])
    _known("quantization", quantizations, _named_formats())
    _known("batching policy", batchings, list(POLICIES))
    grid = [
        Combination(engine, quantization, batching, batch_size, max_batch_tokens)
        for engine in dict.fromkeys(engines)
        for quantization in dict.fromkeys(quantizations)
        if quantization in _FORMATS[engine]
        for batching in dict.fromkeys(batchings)
        if (batching == CONTINUOUS) == (engine in _CONTINUOUS_ENGINES)
    ]
    if not grid:
        raise ConfigError(
            f"no engine of {', '.join(engines)} runs {', '.join(quantizations)} in batches "
            f"{', '.join(batchings)}",
            "; ".join(f"{name}: {', '.join(formats)}" for name, formats in _FORMATS.items())
            + f"; {CONTINUOUS} batches are those of {', '.join(_CONTINUOUS_ENGINES)}",
        )
    return grid


def engine_config(engine: str, quantization: str) -> EngineConfig:
    """What runs a combination's engine and "FORMAT" or "FORMAT:METHOD"."""
    form, _, method = quantization.partition(":")
    return EngineConfig(engine, quantization=form, quantization_method=method or "auto")


def _known(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown {kind} {name!r}", f"known: {', '.join(known)}")


def packhorse_command(arguments: Sequence[str]) -> list[str]:
    """`packhorse` as this very installation, in a fresh interpreter."""
    return [sys.executable, "-m", "packhorse", *arguments]
