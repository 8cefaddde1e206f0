"""Where the packed engine's time goes, against what this machine can do.

    python benchmarks/packed_profile.py MODEL INPUT [--rows 200] [--quantization int8]
        [--linearity | --growth]

First the limits are measured on all cores at once: products of 256 tokens with a layer's weights
(int8 and float32, torch), and reading of memory. Then the rows run, and each phase is set beside
the time its arithmetic alone would take: products and head at the format's rate, attention at the
float32 rate. What lies between the products has no arithmetic to speak of: its limit is given as 0.
At last the memory that the engine stated once it was loaded is set beside what the process took.

--linearity: what a token costs for 50, 200 and 600 rows, for 64 and 512 new tokens, and for
contexts up to 4,000 tokens, each against the smallest of its kind. No row ends early. Each job runs
twice: with one new token a row, which is prefill, and with all; the difference is decoding. A
prompt token is one that is computed: what rows share counts once. A token's attention costs as much
as its context is long; so the cost of a pair of tokens, and of a token without its attention, are
given too.

--growth: resident memory while 10,000 short rows run, of which every ten share a prefix.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from packhorse.batching.planner import plan_batches
from packhorse.batching.policies import CONTINUOUS
from packhorse.batching.sizes import Limits
from packhorse.config import InputConfig
from packhorse.data import Batch, Failure, Prompt, Request, SamplingParams, as_messages
from packhorse.engine_protocol import EngineCapabilities
from packhorse.engines.common.allocator import keep_freed_memory
from packhorse.engines.packed import PackedEngine, read_architecture
from packhorse.engines.packed.architecture import Architecture
from packhorse.inputs import read_rows
from packhorse.models import model_facts, prepare
from packhorse.profiling.cores import usable_cores
from packhorse.profiling.run_metrics import (
    current_memory_bytes,
    peak_memory_bytes,
    reset_peak_memory,
)
from packhorse.tokenization import HuggingFaceCodec

Figures = dict[str, float]
LINEAR_ROWS = (50, 200, 600)
LINEAR_NEW_TOKENS = (64, 512)
LINEAR_CONTEXTS = (500, 1000, 2000, 4000)
CONTEXT_ROWS = 8
"""As many for each context: a step costs the same however few rows share it."""
GROWTH_ROWS, WARM_ROWS = 10_000, 2_000
GROWTH_CACHE_BYTES = 64 << 20
"""So small that it is full, and prefixes are given up, after a few hundred rows."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("input")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--quantization", choices=("int8", "float32"), default="int8")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--linearity", action="store_true", help="what a token costs in larger jobs")
    kind.add_argument("--growth", action="store_true", help="memory while 10,000 rows run")
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
    keep_freed_memory()
    prepared = prepare(options.model, engine="packed")
    facts = model_facts(prepared)
    engine = PackedEngine(
        prepared.folder,
        end_ids=() if options.linearity else facts.eos_token_ids,
        max_context=facts.max_context,
        quantization=options.quantization,
        cache_bytes=GROWTH_CACHE_BYTES if options.growth else None,
    )
    codec = HuggingFaceCodec(prepared.tokenizer_folder)
    return engine, read_architecture(prepared.folder), codec


def prompts_of(path: str, rows: int, new_tokens: int, codec: HuggingFaceCodec) -> list[Prompt]:
    read = read_rows(Path(path), InputConfig(limit=rows))
    chats = [as_messages(row.content) for row in read if isinstance(row, Request)]
    return [
        Prompt(index, ids, SamplingParams(max_new_tokens=new_tokens))
        for index, ids in enumerate(codec.encode_chats(chats))
        if isinstance(ids, tuple)
    ]


def run(engine: PackedEngine, prompts: Sequence[Prompt]) -> Figures:
    """Wall seconds, generated tokens, and what the engine spent."""
    before = engine.spent
    batches = plan_batches(
        prompts, CONTINUOUS, Limits(8, 1), mixed_decoding=True, share_prefixes=True
    )
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
        "matmul": 2 * built.layers * layer * found["tokens"] / rate,
        "attention": 4 * built.layers * attended * found["pairs"] / rates["float32"],
        "head": 2 * built.hidden * built.vocabulary * found["logits"] / rate,
        "elementwise": 0.0,
    }
    print(f"{'phase':12}{'seconds':>9}{'limit':>8}{'share':>8}")
    for phase, limit in least.items():
        seconds = found[phase] / cores
        print(f"{phase:12}{seconds:9.2f}{limit:8.2f}{seconds / found['seconds']:8.1%}")
    idle = found["seconds"] - sum(found[phase] for phase in least) / cores
    print(f"{'scheduling':12}{idle:9.2f}{0:8.2f}{idle / found['seconds']:8.1%}")
    print(f"{'all':12}{found['seconds']:9.2f}{sum(least.values()):8.2f}")
    return least


def linearity_jobs(path: str, codec: HuggingFaceCodec) -> dict[str, dict[str, list[Prompt]]]:
    """Jobs by what grows in them; the first of each is the smallest."""
    rows = prompts_of(path, LINEAR_ROWS[-1], 64, codec)
    few = rows[: LINEAR_ROWS[0]]
    text = tuple(token for prompt in rows for token in prompt.token_ids)
    contexts = {
        f"contexts of {context}": [
            Prompt(row, text[row * context : (row + 1) * context - 64], few[0].decoding)
            for row in range(CONTEXT_ROWS)
        ]
        for context in LINEAR_CONTEXTS
    }
    return {
        "rows": {f"{count} rows": rows[:count] for count in LINEAR_ROWS},
        "new tokens": {
            f"{new} new tokens": [replace(row, decoding=SamplingParams(new)) for row in few]
            for new in LINEAR_NEW_TOKENS
        },
        "context": contexts,
    }


def costs(engine: PackedEngine, prompts: Sequence[Prompt]) -> Figures:
    """What a job costs: see the module. Microseconds, of a pair of tokens nanoseconds."""
    first = run(engine, [replace(row, decoding=SamplingParams(1)) for row in prompts])
    whole = run(engine, prompts)
    prefilled, decoded = first["tokens"], whole["tokens"] - first["tokens"]
    computing = sum(whole[phase] for phase in ("matmul", "head", "elementwise"))
    return {
        "seconds": whole["seconds"],
        "prefill": 1e6 * first["seconds"] / prefilled,
        "decode": 1e6 * (whole["seconds"] - first["seconds"]) / decoded,
        "without attention": 1e6 * computing / usable_cores() / whole["tokens"],
        "pair": 1e9 * whole["attention"] / usable_cores() / whole["pairs"],
    }


def linearity(options: argparse.Namespace, engine: PackedEngine, codec: HuggingFaceCodec) -> None:
    kinds = linearity_jobs(options.input, codec)
    run(engine, next(iter(kinds["rows"].values())))
    print("microseconds a token (of a pair of tokens nanoseconds), x the smallest job of its kind")
    print(f"{'job':20}{'rows':>6}{'seconds':>9}{'prefill':>14}{'decode':>14}"
          f"{'no attention':>16}{'a pair':>14}")  # fmt: skip
    found: dict[str, Figures] = {}
    for jobs in kinds.values():
        names = list(jobs)
        for name, prompts in jobs.items():
            found[name] = costs(engine, prompts)
            columns = [
                f"{found[name][each]:{width}.0f} x{found[name][each] / found[names[0]][each]:5.2f}"
                for each, width in zip(("prefill", "decode", "without attention"), (7, 7, 9),
                                       strict=True)
            ]  # fmt: skip
            pair = found[name]["pair"]
            print(f"{name:20}{len(prompts):6}{found[name]['seconds']:9.1f}{''.join(columns)}"
                  f"{pair:7.0f} x{pair / found[names[0]]['pair']:5.2f}", flush=True)  # fmt: skip
    print(json.dumps(found))


def short_rows(rows: int, vocabulary: int) -> Iterator[Batch]:
    """Rows of 22 tokens, 4 to generate; the first 16 are those of ten rows."""
    chance = random.Random(0)  # noqa: S311 - nothing secret
    ids = range(vocabulary // 4, vocabulary // 2)
    for start in range(0, rows, 10):
        prefix = tuple(chance.choices(ids, k=16))
        yield Batch(
            tuple(
                Prompt(index, prefix + tuple(chance.choices(ids, k=6)), SamplingParams(4))
                for index in range(start, start + 10)
            ),
            len(prefix),
        )


def growth(engine: PackedEngine, built: Architecture) -> None:
    print(f"{'rows':>7}{'resident MB':>13}")
    resident: list[float] = []
    failed = 0
    for done, result in enumerate(engine.run(short_rows(GROWTH_ROWS, built.vocabulary)), start=1):
        failed += isinstance(result, Failure)
        if done % 1000 == 0:
            resident.append(current_memory_bytes() / 1e6)
            print(f"{done:7}{resident[-1]:13.1f}", flush=True)
    grown = resident[-1] - resident[WARM_ROWS // 1000 - 1]
    print(f"{grown:+.1f} MB after the first {WARM_ROWS:,} rows; {failed} rows failed")
    print(json.dumps({"resident_mb": resident, "failed": failed}))


def memory(capabilities: EngineCapabilities, loaded: int) -> Figures:
    """Prints what the engine stated, beside what the process took; loaded: bytes before it ran."""
    cache = capabilities.preferred_batch_tokens * capabilities.cache_bytes_per_token
    most, peak = cache + capabilities.working_bytes, peak_memory_bytes()
    print(
        f"memory: weights {capabilities.model_bytes / 1e9:.2f} GB, cache {cache / 1e9:.2f}, "
        f"steps {capabilities.working_bytes / 1e9:.2f}; the process had {loaded / 1e9:.2f} GB "
        f"when it was loaded and took {(peak - loaded) / 1e9:.2f} more of at most {most / 1e9:.2f}"
    )
    return {"stated": most, "loaded": loaded, "peak": peak}


def main() -> None:
    options = arguments()
    engine, built, codec = load(options)
    loaded = reset_peak_memory()
    if options.linearity:
        linearity(options, engine, codec)
        return
    if options.growth:
        growth(engine, built)
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
    took = memory(engine.capabilities, loaded)
    print(json.dumps({"rates": rates, "found": found, "least": least, "memory": took}))


if __name__ == "__main__":
    main()
