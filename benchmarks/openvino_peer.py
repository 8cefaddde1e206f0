"""One run of OpenVINO GenAI's ContinuousBatchingPipeline for engines.py, without packhorse.

python openvino_peer.py GGUF PROMPTS.json ROWS NEW_TOKENS BATCHED_TOKENS SEQUENCES END_ID...
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    model, prompts, *numbers = sys.argv[1:]
    rows, new_tokens, batched_tokens, sequences, *ends = map(int, numbers)
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens, scheduler.max_num_seqs = batched_tokens, sequences
    scheduler.cache_size = 4  # GB: all rows fit, none is preempted
    scheduler.enable_prefix_caching = True
    started = time.monotonic()
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU")
    every = json.loads(Path(prompts).read_text())[:rows]
    inputs = [ov.Tensor(np.array([ids], dtype=np.int64)) for ids in every]

    def generate(batch: list[Any], tokens: int) -> list[list[int]]:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.do_sample = tokens, False
        config.stop_token_ids = set(ends)
        results = pipeline.generate(batch, [config] * len(batch))
        found = [list(map(int, result.m_generation_ids[0])) for result in results]
        return [ids[:-1] if ids and ids[-1] in ends else ids for ids in found]

    generate(inputs[:2], 4)
    loaded = time.monotonic()
    tokens = generate(inputs, new_tokens)
    seconds = time.monotonic() - loaded
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {"seconds": seconds, "loading": loaded - started, "peak": peak, "tokens": tokens}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
