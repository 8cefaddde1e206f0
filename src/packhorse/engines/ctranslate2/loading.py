"""Load CTranslate2 generators, with clear errors."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ctranslate2

from packhorse.errors import EngineError, ModelError, first_line
from packhorse.models.ct2_check import logits_at_once, require_same_logits
from packhorse.models.ctranslate2_folder import (
    Variable,
    layer_count,
    read_variables,
    smallest_window,
    stored_quantization,
    vocabulary,
)

_POLL_SECONDS = 0.001
_WEIGHT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int16": 2}
_DAMAGED = "the files are damaged, incomplete or of another kind: convert or fetch them again"


@dataclass(frozen=True, slots=True)
class GeneratorSource:
    """Arguments of a `ctranslate2.Generator`; every call of `load` creates a new one.

    Attributes:
        compute_type: a name of CTranslate2's; "default" keeps the stored format if the device can
            run it.
        threads: OpenMP threads per worker.
    """

    folder: Path
    device: str
    compute_type: str
    threads: int

    def load(self, workers: int) -> Any:
        """Return a generator whose `workers` workers share its weights; ModelError if it fails."""
        try:
            return ctranslate2.Generator(
                os.fspath(self.folder),
                device=self.device,
                compute_type=self.compute_type,
                inter_threads=workers,
                intra_threads=self.threads,
            )
        except MemoryError as error:
            raise EngineError(
                f"{self.folder} does not fit into memory",
                "use a smaller model or --quantization int8",
            ) from error
        except (RuntimeError, ValueError) as error:
            message = f"{self.folder} cannot be loaded: {first_line(error)}"
            raise ModelError(message, _DAMAGED) from error


def checked_tokens(
    generator: Any, folder: Path, variables: Mapping[str, Variable], context: int
) -> list[str]:
    """Return the tokens by id, after checking the model on a short text (`models.ct2_check`).

    Raises:
        ModelError: the model computes NaN, or other logits than the model it was converted from.
    """
    try:
        size = logits_at_once(generator, [0]).shape[-1]
        tokens = checked_vocabulary(folder, size)[:size]
        stored, window = stored_quantization(variables), smallest_window(variables)
        require_same_logits(generator, folder, tokens, window, stored, context)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{folder} cannot be run: {first_line(error)}", _DAMAGED) from error
    return tokens


def checked_vocabulary(folder: Path, size: int) -> list[str]:
    """Return the tokens by id, which CTranslate2 needs; ModelError if there are fewer than ids."""
    tokens = vocabulary(folder)
    if len(tokens) < size:
        raise ModelError(
            f"the vocabulary in {folder} has {len(tokens)} tokens, the model {size}", _DAMAGED
        )
    return tokens


def available_device(asked: str) -> str:
    """Return `asked` with "auto" resolved; EngineError if no GPU is available."""
    count = ctranslate2.get_cuda_device_count()
    if asked == "cuda" and not count:
        raise EngineError("no CUDA device is available to CTranslate2", "use --device cpu")
    return asked if asked != "auto" else "cuda" if count else "cpu"


def supported_formats(device: str) -> set[str]:
    """Return the number formats that CTranslate2 computes on this machine's "cpu" or "cuda"."""
    found: set[str] = ctranslate2.get_supported_compute_types(device)
    return found


def supported_compute_type(quantization: str, device: str) -> str:
    """Return CTranslate2's name of a quantization; EngineError if the device cannot run it."""
    if quantization == "auto":
        return "default"
    supported = supported_formats(device)
    if quantization not in supported:
        raise EngineError(
            f"CTranslate2 does not run {quantization} on this {device}",
            f"--quantization is one of {', '.join(sorted(supported))} here",
        )
    return quantization


@dataclass(frozen=True, slots=True)
class MemorySizes:
    """model_bytes: weights. cache_bytes_per_token: keys and values of one token in all layers."""

    model_bytes: int
    cache_bytes_per_token: int


def memory_sizes(folder: Path, compute_type: str) -> MemorySizes:
    """Return the sizes of a model in memory.

    The cache holds keys and values of every query head, unless all queries share
    one key/value head (src/layers/attention.cc, replicate_heads).
    """
    variables = read_variables(folder)
    attention = "decoder/layer_0/self_attention"
    heads = int(variables["decoder/num_heads"].value or 1)
    shared = variables.get(f"{attention}/num_heads_kv")
    kv_heads = int((shared.value if shared else None) or heads)
    head_size = variables[f"{attention}/linear_0/weight"].shape[0] // (heads + 2 * kv_heads)
    cached_heads = 1 if kv_heads == 1 else heads
    number_bytes = 2 if compute_type.endswith("float16") else 4
    stored = _WEIGHT_BYTES.get(stored_quantization(variables), 1)
    weights = (folder / "model.bin").stat().st_size
    return MemorySizes(
        model_bytes=weights * _WEIGHT_BYTES.get(compute_type, 1) // stored,
        cache_bytes_per_token=layer_count(variables) * 2 * cached_heads * head_size * number_bytes,
    )


def await_idle(generator: Any) -> None:
    """Wait until a generator has no jobs and their callbacks are destroyed.

    A job's results are available before its callback is destroyed, and an interpreter that exits in
    between aborts.
    """
    while generator.num_active_batches:
        time.sleep(_POLL_SECONDS)
