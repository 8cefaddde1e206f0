"""Stated peak memory of the engine, compared with measured memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from packhorse.engines.packed import int8_matmul
from packhorse.engines.packed.architecture import read_architecture
from packhorse.engines.packed.memory import LOGIT_BYTES, weight_bytes
from packhorse.engines.packed.scratch import SAMPLED_AT_ONCE
from packhorse.engines.packed.weights import load_weights
from random_models import FAMILIES, saved

MEASURE = """
import json, sys
from pathlib import Path
from packhorse.data import Batch, EngineOutput, Prompt, SamplingParams
from packhorse.engines.common.allocator import keep_freed_memory
from packhorse.engines.packed import PackedEngine
from packhorse.profiling.run_metrics import reset_peak_memory, peak_memory_bytes

keep_freed_memory()
folder, quantization, cache_bytes = sys.argv[1:]
engine = PackedEngine(
    Path(folder), end_ids=(), max_context=256, quantization=quantization, threads=2,
    cache_bytes=int(cache_bytes), max_num_seqs=600,
)
capabilities, before = engine.capabilities, reset_peak_memory()
rows = 3 * capabilities.preferred_batch_tokens // 500
prompts = [Prompt(row, (row % 290 + 3,) * 50, SamplingParams(200)) for row in range(rows)]
results = list(engine.run(iter([Batch(tuple(prompts))])))
assert all(isinstance(result, EngineOutput) for result in results)
stated = capabilities.peak_bytes - capabilities.model_bytes
print(json.dumps([stated, peak_memory_bytes() - before]))
"""


SAMPLING = """
import json, sys
import numpy as np
import torch
from packhorse.data import SamplingParams
from packhorse.engines.common.allocator import keep_freed_memory
from packhorse.engines.common.log_probs import wanted_log_probs
from packhorse.engines.common.sampling import choose_tokens, row_generator
from packhorse.profiling.run_metrics import reset_peak_memory, peak_memory_bytes

keep_freed_memory()
torch.set_num_threads(1)
rows, vocabulary, options = json.loads(sys.argv[1])
decodings = [SamplingParams(9, temperature=1.0, seed=row, **options) for row in range(rows)]

def choose(vocabulary):
    logits = np.random.default_rng(0).normal(0, 0.1, (rows, vocabulary)).astype(np.float32)
    return logits.__getitem__, choose_tokens(
        torch.from_numpy(logits), decodings, [row_generator(each) for each in decodings]
    )

def step(vocabulary):
    logits_of, chosen = choose(vocabulary)
    wanted_log_probs(chosen, decodings, logits_of)

step(2000)
before = reset_peak_memory()
for _ in range(3):
    step(vocabulary)
print(peak_memory_bytes() - before)
"""


def arrays(value: Any) -> Iterator[tuple[int, int]]:
    """Yield address and bytes of all arrays that a value holds."""
    if isinstance(value, torch.Tensor | np.ndarray):
        tensor = torch.as_tensor(value)
        yield tensor.data_ptr(), tensor.nbytes
    elif is_dataclass(value):
        for field in fields(value):
            yield from arrays(getattr(value, field.name))
    elif isinstance(value, tuple):
        for each in value:
            yield from arrays(each)


@pytest.fixture
def without_vnni(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Store weights as on a CPU without exact int8 matrix multiplication."""
    monkeypatch.setattr(int8_matmul, "_is_exact", lambda *_: False)
    int8_matmul.int8_matmul_is_exact.cache_clear()
    yield
    int8_matmul.int8_matmul_is_exact.cache_clear()


@pytest.mark.usefixtures("without_vnni")
@pytest.mark.parametrize("name", FAMILIES)
def test_weights_in_two_parts_are_counted_as_such(name: str, tmp_path: Path) -> None:
    saved(FAMILIES[name], tmp_path)
    built = read_architecture(tmp_path)
    held = sum(dict(arrays(load_weights(tmp_path, built, quantized=True))).values())
    assert held <= weight_bytes(built, quantized=True, panels=False) <= 1.25 * held


@pytest.mark.parametrize("panels", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_as_large_as_the_architecture_says(
    name: str, quantized: bool, panels: bool, tmp_path: Path
) -> None:
    """Allow for biases and norms that a family lacks: a quarter of models this small."""
    saved(FAMILIES[name], tmp_path)
    built = read_architecture(tmp_path)
    weights = load_weights(tmp_path, built, quantized=quantized, native=panels)
    held = sum(dict(arrays(weights)).values())
    assert held <= weight_bytes(built, quantized=quantized, panels=panels) <= 1.25 * held


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantization", "isa"), [("float32", "DEFAULT"), ("int8", "DEFAULT"), ("int8", "AVX2")]
)
def test_a_full_cache_and_steps_take_what_was_stated(
    quantization: str, isa: str, built: dict[str, Path]
) -> None:
    """Run 1.5 times as many tokens as the cache holds.

    6 MB are allowed for memory outside the engine: prompts, results, and library code used for the
    first time. `isa` is the instruction set that oneDNN may use; AVX2 has no VNNI.
    """
    command = [sys.executable, "-c", MEASURE, str(built["llama"]), quantization, str(24 << 20)]
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    stated, grown = json.loads(done.stdout)
    assert stated > 24e6
    assert 0.6 * stated < grown < stated + 6e6


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_p": 0.9},
        {"top_p": 0.95, "top_k": 2000},
        {"top_p": 0.999, "top_k": 99_000, "top_log_probs": 5},
    ],
    ids=str,
)
def test_sampling_takes_no_more_than_is_counted(options: dict[str, Any]) -> None:
    """The logits are so similar that a nucleus holds most of the vocabulary."""
    vocabulary = 100_000
    asked = json.dumps([SAMPLED_AT_ONCE, vocabulary, options])
    command = [sys.executable, "-c", SAMPLING, asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= SAMPLED_AT_ONCE * vocabulary * LOGIT_BYTES
