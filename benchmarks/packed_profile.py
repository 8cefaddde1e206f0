"""Where the packed engine's time goes, against what this machine can do.

    python benchmarks/packed_profile.py MODEL INPUT [--rows 200] [--quantization int8] [--linearity]

First the limits are measured on all cores at once: products of 256 tokens with a layer's weights
(int8 and float32, torch), and reading of memory. Then the rows run, and each phase is set beside
the time its arithmetic alone would take: products and head at the format's rate, attention at the
float32 rate. What lies between the products has no arithmetic to speak of: its limit is given as 0.

--linearity: seconds a computed token for 50, 200 and 600 rows, for 64 and 512 new tokens, and for
contexts up to 4,000 tokens.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from packhorse.batching.planning import plan
from packhorse.batching.policies import CONTINUOUS, Limits
from packhorse.config import InputConfig
from packhorse.data import Decoding, Prompt, Request
from packhorse.engines.cores import usable_cores
from packhorse.engines.packed import PackedEngine, read_architecture
from packhorse.engines.packed.architecture import Architecture
from packhorse.models import model_facts, prepare
from packhorse.sources import read_rows
from packhorse.tokenization import HuggingFaceCodec

Figures = dict[str, float]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("input")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--quantization", choices=("int8", "float32"), default="int8")
    parser.add_argument("--linearity", action="store_true")
    return parser.parse_args()


def on_all_cores(make: Callable[[], Callable[[], object]], seconds: float = 1.0) -> float:
    """Calls a second, of all cores together, of functions that `make` makes for one core each."""
    counts = [0.0] * usable_cores()

    def work(core: int) -> None:
        torch.set_num_threads(1)
        call = make()
        call()
        started = time.perf_counter()
        while (spent := time.perf_counter() - started) < seconds:
            call()
            counts[core] += 1
        counts[core] /= spent

    threads = [threading.Thread(target=work, args=(core,)) for core in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def limits(built: Architecture, tokens: int = 256) -> Figures:
    """int8 and float32 operations and bytes read, a second."""
    shape = built.hidden, built.activation_width

    def int8() -> Callable[[], object]:
        rows = torch.randint(-127, 127, (tokens, shape[0]), dtype=torch.int8)
        weight = torch.randint(-127, 127, shape, dtype=torch.int8)
        product = torch.empty(tokens, shape[1], dtype=torch.int32)
        return lambda: torch._int_mm(rows, weight, out=product)  # noqa: SLF001 - no public one

    def float32() -> Callable[[], object]:
        rows, weight = torch.randn(tokens, shape[0]), torch.randn(shape[1], shape[0])
        product = torch.empty(tokens, shape[1])
        return lambda: torch.mm(rows, weight.t(), out=product)

    def reading() -> Callable[[], object]:
        memory = torch.ones(1 << 26)
        return lambda: memory.sum()

    operations = 2 * tokens * shape[0] * shape[1]
    return {
        "int8": on_all_cores(int8) * operations,
        "float32": on_all_cores(float32) * operations,
        "bytes": on_all_cores(reading) * (4 << 26),
    }


def load(options: argparse.Namespace) -> tuple[PackedEngine, Architecture, HuggingFaceCodec]:
    prepared = prepare(options.model, engine="packed")
    facts = model_facts(prepared)
    engine = PackedEngine(
        prepared.folder,
        end_ids=facts.eos_token_ids,
        max_context=facts.max_context,
        quantization=options.quantization,
    )
    codec = HuggingFaceCodec(prepared.tokenizer_folder)
    return engine, read_architecture(prepared.folder), codec


def prompts_of(path: str, rows: int, new_tokens: int, codec: HuggingFaceCodec) -> list[Prompt]:
    read = read_rows(Path(path), InputConfig(limit=rows))
    chats = [
        [{"role": "user", "content": row.content}] if isinstance(row.content, str) else row.content
        for row in read
        if isinstance(row, Request)
    ]
    return [
        Prompt(index, ids, Decoding(max_new_tokens=new_tokens))
        for index, ids in enumerate(codec.encode_chats(chats))
        if isinstance(ids, tuple)
    ]


def run(engine: PackedEngine, prompts: Sequence[Prompt]) -> Figures:
    """Wall seconds, generated tokens, and what the engine spent."""
    before = engine.spent
    batches = plan(prompts, CONTINUOUS, Limits(8, 1), mixed_decoding=True, share_prefixes=True)
    started = time.perf_counter()
    results: list[Any] = list(engine.run(iter(batches)))
    seconds = time.perf_counter() - started
    generated = sum(len(result.token_ids) for result in results)
    spent = {name: value - before[name] for name, value in engine.spent.items()}
    return {"seconds": seconds, "generated": generated, **spent}


def profile(found: Figures, built: Architecture, rates: Figures, quantization: str) -> Figures:
    """Prints where the time of all cores went, beside its limit; returns the limits (seconds)."""
    cores, rate = usable_cores(), rates[quantization]
    attended = built.heads * built.head_size
    layer = built.hidden * (
        (built.heads + 2 * built.kv_heads) * built.head_size + attended
        + built.activation_width + built.inner
    )  # fmt: skip
    least = {
        "products": 2 * built.layers * layer * found["tokens"] / rate,
        "attention": 4 * built.layers * attended * found["pairs"] / rates["float32"],
        "head": 2 * built.hidden * built.vocabulary * found["logits"] / rate,
        "between": 0.0,
    }
    print(f"{'phase':12}{'seconds':>9}{'limit':>8}{'share':>8}")
    for phase, limit in least.items():
        seconds = found[phase] / cores
        print(f"{phase:12}{seconds:9.2f}{limit:8.2f}{seconds / found['seconds']:8.1%}")
    idle = found["seconds"] - sum(found[phase] for phase in least) / cores
    print(f"{'scheduling':12}{idle:9.2f}{0:8.2f}{idle / found['seconds']:8.1%}")
    print(f"{'all':12}{found['seconds']:9.2f}{sum(least.values()):8.2f}")
    return least


def linearity(options: argparse.Namespace, engine: PackedEngine, codec: HuggingFaceCodec) -> None:
    jobs = {
        f"{rows} rows, 64 new tokens": prompts_of(options.input, rows, 64, codec)
        for rows in (50, 200, 600)
    }
    jobs["50 rows, 512 new tokens"] = prompts_of(options.input, 50, 512, codec)
    text = [token for prompt in jobs["200 rows, 64 new tokens"] for token in prompt.token_ids]
    for context in (500, 1000, 2000, 4000):
        rows = [text[start : start + context - 64] for start in range(0, 16000, context)]
        prompt = replace(jobs["50 rows, 64 new tokens"][0])
        jobs[f"{len(rows)} rows, contexts of {context}"] = [
            replace(prompt, index=index, token_ids=tuple(ids)) for index, ids in enumerate(rows)
        ]
    print(f"{'job':30}{'seconds':>9}{'tokens':>9}{'tokens/s':>10}")
    for name, prompts in jobs.items():
        found = run(engine, prompts)
        rate = found["tokens"] / found["seconds"]
        print(f"{name:30}{found['seconds']:9.1f}{found['tokens']:9.0f}{rate:10.0f}")


def main() -> None:
    options = arguments()
    engine, built, codec = load(options)
    if options.linearity:
        linearity(options, engine, codec)
        return
    rates = limits(built)
    print(
        f"{rates['int8'] / 1e9:.0f} int8 GOPS, {rates['float32'] / 1e9:.0f} float32 GFLOPS, "
        f"{rates['bytes'] / 1e9:.1f} GB/s on {usable_cores()} cores"
    )
    prompts = prompts_of(options.input, options.rows, options.max_new_tokens, codec)
    run(engine, prompts[:2])
    found = run(engine, prompts)
    least = profile(found, built, rates, options.quantization)
    print(json.dumps({"rates": rates, "found": found, "least": least}))


if __name__ == "__main__":
    main()
