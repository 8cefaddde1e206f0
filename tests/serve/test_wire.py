"""What the engine's process tells the server when it is loaded."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import packhorse
from packhorse import BatchingConfig, EngineConfig
from packhorse.batching.cost import PrefillMemory, WorkCounts
from packhorse.batching.planner import plan_batches
from packhorse.calibration import Calibration
from packhorse.data import Prompt, SamplingParams
from packhorse.serve.wire import read_ready, ready_message
from tiny_models import tiny_llama


@pytest.mark.parametrize("asked", [None, 5000])
def test_the_server_bounds_batches_as_the_library_does(tmp_path: Path, asked: int | None) -> None:
    """The limits of both are equal, the memory for prompts among them, and cut the same batches."""
    folder = tiny_llama(tmp_path / "model")
    engine = EngineConfig(engine="transformers", quantization="float32")
    batching = BatchingConfig(policy="sorted-dynamic", batch_size=5, max_batch_tokens=asked)
    with packhorse.load(str(folder), engine=engine, batching=batching) as loaded:
        costs = WorkCounts(0.01, 1e-4, 1e-7, 0.01, 1e-3, 1e-6)
        memory = PrefillMemory(1e6, 1e3)
        known = Calibration(
            "m", loaded.capabilities, (), costs, 30, 0.1, 1.0, 10**8, memory, 5.0, "2026-01-01"
        )
        planned = replace(loaded.batching, policy="planned")
        model = replace(loaded, batching=planned, calibration=known)
        budget = replace(model.budget(SamplingParams(max_new_tokens=16)), memory_tokens=2**20)
        message = json.loads(json.dumps(ready_message(model, budget, "a line")))
        served = read_ready(message).batching
    assert served.limits == model.limits(budget)
    assert (served.limits.max_batch_bytes == math.inf) == (asked is not None)
    assert (served.policy, served.share_prefixes) == ("planned", True)
    prompts = [Prompt(row, (1,) * 200, SamplingParams(max_new_tokens=16)) for row in range(40)]
    batches = plan_batches(prompts, "planned", served.limits, mixed_decoding=True)
    assert batches == plan_batches(prompts, "planned", model.limits(budget), mixed_decoding=True)
    if asked is None:
        most = served.limits.max_batch_bytes / memory.row_bytes(200.0, 0)
        assert max(len(batch.prompts) for batch in batches) <= most < 40
