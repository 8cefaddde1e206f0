"""A plausible comparison to draw reports from: fifteen trials, one failed, one flagged."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from packhorse.compare.document import (
    Comparison,
    Effect,
    Estimate,
    Recommendation,
    Repeat,
    Spread,
    Trial,
    WorstRow,
)

ROWS = 64
PROMPT_TOKENS = 15_102
MODEL = "smollm2-135m-instruct"
BATCHINGS = ("single", "fixed", "dynamic", "sorted", "sorted-dynamic")
FAILED = "ctranslate2 float32 dynamic"
FLAGGED = "ctranslate2 int8 fixed"
RECOMMENDED = "ctranslate2 int8 sorted-dynamic"
KNEE = "transformers float32 sorted-dynamic"


@dataclass(frozen=True)
class Variant:
    """Generate seconds a batching, and what the number format did to accuracy."""

    engine: str
    quantization: str
    seconds: tuple[float, ...]
    memory_gb: float
    wasted_share: str
    identical: tuple[float, ...]
    prefix: tuple[float, ...]


VARIANTS = (
    Variant(
        "transformers", "float32", (182.0, 150.0, 121.0, 79.0, 73.0), 1.62, "padding_share",
        (1.0,) * 5, (1.0,) * 5,
    ),
    Variant(
        "ctranslate2", "float32", (96.0, 141.0, 118.0, 88.0, 84.0), 1.05,
        "token_by_token_prefill_share", (1.0,) * 5, (1.0,) * 5,
    ),
    Variant(
        "ctranslate2", "int8", (46.0, 92.0, 74.0, 51.0, 43.5), 0.46, "token_by_token_prefill_share",
        (15 / 64, 14 / 64, 15 / 64, 16 / 64, 15 / 64), (0.414, 0.398, 0.407, 0.421, 0.416),
    ),
)  # fmt: skip
WASTE = {"single": 0.0, "fixed": 0.612, "dynamic": 0.524, "sorted": 0.071, "sorted-dynamic": 0.034}
WORST = (
    (
        "mixed-0014",
        "Answer in one sentence. Which planet of the solar system has the most moons?",
        "Saturn has the most moons of all planets in the solar system, with 146 known so far.",
        "Saturn has the most moons in the solar system, with at least 83 confirmed moons, and "
        "Jupiter comes second.",
        0.214,
        0.871,
    ),
    (
        "mixed-0031",
        "Juliana é irmã da prima do irmão de Guilherme. Sabe-se que Guilherme tem um único irmão "
        "e Juliana uma única irmã. Portanto, pode-se afirmar que: A. Juliana não é prima de "
        "Guilherme. B. Guilherme é irmão de Juliana. C. Guilherme tem apenas uma prima.",
        "A resposta correta é a letra C. Guilherme tem apenas uma prima, e Juliana é irmã dela.",
        "A resposta correta é a letra B.",
        0.318,
        0.762,
    ),
    (
        "mixed-0047",
        "Return the list below as JSON without duplicates.\n\nAlbany, Sacramento, Juneau, Helena, "
        "Albany, Juneau, Boise",
        '["Albany", "Sacramento", "Juneau", "Helena", "Boise"]',
        '{\n  "cities": ["Albany", "Sacramento", "Juneau", "Helena", "Albany", "Juneau", "Boise"'
        "]\n}",
        0.0,
        0.903,
    ),
    (
        "mixed-0058",
        "次の文を英語に訳してください: 春の朝、川のそばで鳥が鳴いています。",
        "On a spring morning, birds are singing beside the river.",
        "On a spring morning, the birds sing by the river.",
        0.308,
        0.958,
    ),
)


def comparison(rows: int = ROWS, repeats: int = 3) -> Comparison:
    """The fifteen trials; times wander by some per cent between repeats, as on a real machine."""
    generator = random.Random(20_261_122)
    trials = tuple(
        trial(variant, index, rows, repeats, generator)
        for variant in VARIANTS
        for index in range(len(BATCHINGS))
    )
    return Comparison(
        command=f"packhorse compare {MODEL} prompts-mixed.jsonl --engines transformers,ctranslate2 "
        "--quantizations float32,int8 --batchings single,fixed,dynamic,sorted,sorted-dynamic "
        "--sample 64 --repeats 3 --max-new-tokens 64 -o report/",
        created="2026-11-22T22:20:09+00:00",
        model=MODEL,
        machine={
            "processor": "Intel Xeon Platinum 8481C at 2.70 GHz",
            "cores": 2,
            "memory_bytes": 25_276_497_920,
            "instructions": ["amx_int8", "avx2", "avx512_vnni", "avx512f"],
            "system": "Linux-6.1.0-x86_64-with-glibc2.36",
        },
        versions={
            "python": "3.11.7",
            "packhorse": "0.1.0",
            "torch": "2.13.0+cpu",
            "transformers": "5.23.0",
            "ctranslate2": "4.8.5",
        },
        sample={
            "input": "prompts-mixed.jsonl",
            "rows": rows,
            "rows_in_input": 600,
            "skipped": 0,
            "max_new_tokens": 64,
            "prompt_tokens": PROMPT_TOKENS,
            "longest_prompt": 1_107,
        },
        reference={
            "name": "transformers float32 single",
            "rows": rows,
            "failed": 0,
            "generated_tokens": round(53.2 * rows),
        },
        limits={"max_p95": 60.0, "max_ram": 2.0, "min_agreement": 0.4},
        trials=trials,
        effects=(*batching_effects(trials), *quantization_effects(trials)),
        pareto=(KNEE, "ctranslate2 int8 sorted", RECOMMENDED),
        knee=KNEE,
        recommendation=Recommendation(
            trial=RECOMMENDED,
            reason=f"{RECOMMENDED} is the fastest inside the limits: 1.47 rows/s at a matched "
            "prefix of 0.416, tied in speed with ctranslate2 int8 single.",
            given_up=f"{KNEE} agrees more with the reference (1.000), at 0.877 rows/s.",
            ties=("ctranslate2 int8 single",),
            command=f"packhorse run {MODEL} prompts-mixed.jsonl -o answers.jsonl --engine "
            "ctranslate2 --quantization int8 --batching sorted-dynamic --max-new-tokens 64",
        ),
    )


def trial(variant: Variant, index: int, rows: int, repeats: int, generator: random.Random) -> Trial:
    batching = BATCHINGS[index]
    name = f"{variant.engine} {variant.quantization} {batching}"
    failed = name == FAILED
    measured = [
        repeat(number, variant, index, rows, generator)
        for number in range(1 if failed else repeats)
    ]
    return Trial(
        name=name,
        engine=variant.engine,
        quantization=variant.quantization,
        batching=batching,
        status="failed" if failed else "ok",
        reason="repeat 2 was ended by signal 9 after 31 s (out of memory?)" if failed else "",
        compute_type="int8_float32" if variant.quantization == "int8" else "float32",
        threads="1 x 2" if variant.engine == "transformers" else "2 x 1",
        repeats=tuple(measured),
        speed={} if failed else speed(measured),
        quality={} if failed else quality(variant, index, rows),
        quality_notes={} if failed else notes(variant, index, rows),
        worst_rows=worst_rows() if variant.quantization == "int8" else (),
        flags=("generated 1.14 times as many tokens as the reference, so its speed is not for "
               "equal work",) if name == FLAGGED else (),
        command=f"packhorse run {MODEL} prompts-mixed.jsonl -o answers.jsonl --engine "
        f"{variant.engine} --quantization {variant.quantization} --batching {batching} "
        "--max-new-tokens 64",
    )  # fmt: skip


def repeat(
    number: int, variant: Variant, index: int, rows: int, generator: random.Random
) -> Repeat:
    """One run: latencies log-normal around what the batch size makes of a row's time."""
    batching = BATCHINGS[index]
    generate = variant.seconds[index] * rows / ROWS * generator.uniform(0.96, 1.07)
    load = generator.uniform(1.5, 2.5)
    workers = 1 if variant.engine == "transformers" else 2
    rows_at_once = {"single": 1, "fixed": 8, "dynamic": 11, "sorted": 8, "sorted-dynamic": 13}
    typical = workers * generate / rows * rows_at_once[batching]
    latencies = sorted(typical * math.exp(generator.gauss(-0.08, 0.42)) for _ in range(rows))
    generator.shuffle(latencies)
    generated = round(53.2 * rows * (1.14 if variant.quantization == "int8" and index == 1 else 1))
    figures: dict[str, Any] = {
        "rows_completed": rows,
        "rows_failed": 0,
        "prompt_tokens": PROMPT_TOKENS,
        "generated_tokens": generated,
        "batches": -(-rows // rows_at_once[batching]),
        "padding_share": WASTE[batching] if variant.wasted_share == "padding_share" else None,
        "token_by_token_prefill_share": WASTE[batching]
        if variant.wasted_share == "token_by_token_prefill_share"
        else None,
        "seconds": {"load": load, "generate": generate, "total": generate + load},
        "rows_per_second": rows / generate,
    }
    streams = variant.engine == "transformers"
    return Repeat(
        number=number,
        wall_seconds=generate + load + 1.9,
        peak_memory_bytes=int(variant.memory_gb * 1e9 * generator.uniform(0.99, 1.03)),
        processor_seconds=1.87 * generate,
        energy_joules=None,
        figures=figures,
        latencies=tuple(latencies),
        first_tokens=tuple(0.3 * value if streams else None for value in latencies),
    )


def speed(repeats: Sequence[Repeat]) -> dict[str, Spread]:
    def every(name: str) -> list[float]:
        return [repeat.figures[name] for repeat in repeats]

    seconds = [repeat.figures["seconds"]["generate"] for repeat in repeats]
    tokens = every("generated_tokens")
    values: dict[str, Sequence[float]] = {
        "generate_seconds": seconds,
        "load_seconds": [repeat.figures["seconds"]["load"] for repeat in repeats],
        "wall_seconds": [repeat.wall_seconds for repeat in repeats],
        "rows_per_second": every("rows_per_second"),
        "prompt_tokens_per_second": [PROMPT_TOKENS / value for value in seconds],
        "generated_tokens_per_second": [
            count / value for count, value in zip(tokens, seconds, strict=True)
        ],
        "total_tokens_per_second": [
            (PROMPT_TOKENS + count) / value for count, value in zip(tokens, seconds, strict=True)
        ],
        "latency_p50": [quantile(repeat.latencies, 0.50) for repeat in repeats],
        "latency_p95": [quantile(repeat.latencies, 0.95) for repeat in repeats],
        "peak_memory_bytes": [repeat.peak_memory_bytes for repeat in repeats],
        "processor_seconds": [repeat.processor_seconds for repeat in repeats],
        "batches": every("batches"),
        "generated_tokens": tokens,
    }
    if repeats[0].first_tokens[0] is not None:
        values["first_token_p50"] = [quantile(repeat.first_tokens, 0.50) for repeat in repeats]
    for name in ("padding_share", "token_by_token_prefill_share"):
        if repeats[0].figures[name] is not None:
            values[name] = every(name)
    return {name: spread(items) for name, items in values.items()}


def spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values), tuple(values))


def quantile(values: Sequence[float | None], share: float) -> float:
    ordered = sorted(value for value in values if value is not None)
    return ordered[round(share * (len(ordered) - 1))]


def quality(variant: Variant, index: int, rows: int) -> dict[str, Estimate]:
    exact = variant.quantization == "float32"
    identical = wilson(variant.identical[index], rows)
    return {
        "rows_identical": identical,
        "first_token_equal": wilson(1.0 if exact else 58 / 64, rows),
        "matched_prefix": around(variant.prefix[index], 0.0 if exact else 0.083),
        "chrf": Estimate(100.0, 100.0, 100.0) if exact else Estimate(57.3, 51.2, 63.6),
        "cosine": around(1.0 if exact else 0.873 + 0.003 * index, 0.0 if exact else 0.031),
        "kl_divergence": Estimate(1e-6, 8e-7, 1.3e-6) if exact else Estimate(0.0152, 0.0131, 0.018),
        "top1_agreement": around(1.0 if exact else 0.934, 0.0 if exact else 0.011),
    }


def around(value: float, margin: float) -> Estimate:
    return Estimate(value, max(0.0, value - margin), min(1.0, value + margin))


def wilson(share: float, rows: int) -> Estimate:
    scale = 1 + 3.8416 / rows
    centre = (share + 1.9208 / rows) / scale
    half = 1.96 * math.sqrt(share * (1 - share) / rows + 0.9604 / rows**2) / scale
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))


def notes(variant: Variant, index: int, rows: int) -> dict[str, float | int | None]:
    exact = variant.quantization == "float32"
    return {
        "rows": rows,
        "rows_identical_count": round(variant.identical[index] * rows),
        "cosine_floor": 0.094,
        "first_divergence_median": None if exact else 14.0,
        "length_ratio": 1.0 if exact else 1.14 if index == 1 else 1.02,
        "perplexity_ratio": 1.0 if exact else 1.013,
    }


def worst_rows() -> tuple[WorstRow, ...]:
    return tuple(WorstRow(*row) for row in WORST)


def batching_effects(trials: Sequence[Trial]) -> list[Effect]:
    by_name = {trial.name: trial for trial in trials}
    return [
        effect("batching", by_name[before], by_name[after])
        for variant in VARIANTS
        for batching in BATCHINGS[1:]
        for before in [f"{variant.engine} {variant.quantization} single"]
        for after in [f"{variant.engine} {variant.quantization} {batching}"]
        if after != FAILED
    ]


def quantization_effects(trials: Sequence[Trial]) -> list[Effect]:
    by_name = {trial.name: trial for trial in trials}
    return [
        effect("quantization", by_name[before], by_name[after])
        for batching in BATCHINGS
        for before in [f"ctranslate2 float32 {batching}"]
        for after in [f"ctranslate2 int8 {batching}"]
        if before != FAILED
    ]


def effect(kind: Any, before: Trial, after: Trial) -> Effect:
    """Batching in int8 changes some rows, in float32 none; quantization is against float32."""
    apart = after.quantization == "int8"
    if apart and kind == "batching":
        rows_identical, prefix = wilson(0.81, ROWS), around(0.912, 0.047)
    else:
        rows_identical, prefix = after.quality["rows_identical"], after.quality["matched_prefix"]
    seconds = before.speed["generate_seconds"].values, after.speed["generate_seconds"].values
    ratios = [left / right for left, right in zip(*seconds, strict=True)]
    speed_ratio = Spread(median(ratios), min(ratios), max(ratios), ())
    return Effect(kind, before.name, after.name, rows_identical, prefix, speed_ratio)
