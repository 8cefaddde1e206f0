"""A comparison as data: what `report.json` holds and every other report is drawn from.

All times are seconds, all sizes bytes, all shares between 0 and 1, chrF from 0 to 100. `FORMAT`
changes whenever a reader of an older report.json would misread a newer one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the repeats: their median, and the interval [low, high] around it.

    With fewer than 6 repeats the interval is the smallest and largest value.
    """

    median: float
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over rows with its 95 % interval [low, high]: Wilson's for shares of rows, a bootstrap
    over rows for everything else."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Repeat:
    """One run of one trial, raw.

    figures: `Meter.to_json` of the trial's process. wall_seconds: the whole process, start to end.
    peak_memory_bytes: largest resident memory of its process tree. energy_joules: measured by RAPL
    or None. latencies, first_tokens: one value a row, in input order; None where it is not known.
    """

    number: int
    wall_seconds: float
    peak_memory_bytes: int
    processor_seconds: float
    energy_joules: float | None
    figures: dict[str, Any]
    latencies: tuple[float | None, ...]
    first_tokens: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class WorstRow:
    """A row whose answer is farthest from the reference's."""

    id: str
    prompt: str
    reference_text: str
    text: str
    matched_prefix: float
    cosine: float | None


@dataclass(frozen=True, slots=True)
class Trial:
    """One combination of engine, quantization and batching.

    status "failed" has a `reason` and whatever repeats ended well. speed: Spread by figure name:
    wall_seconds, load_seconds, generate_seconds, rows_per_second, prompt_tokens_per_second,
    generated_tokens_per_second, total_tokens_per_second, latency_p50, latency_p95, latency_p99,
    first_token_p50, first_token_p95, seconds_per_token_p50, peak_memory_bytes, processor_seconds,
    energy_joules, padding_share, token_by_token_prefill_share, batches, generated_tokens; a figure
    that was not measured is absent. quality: Estimate by measure name: rows_identical,
    first_token_equal, matched_prefix, chrf, cosine, kl_divergence, top1_agreement, label_accuracy.
    quality_notes: other quality figures (counts, cosine_floor, perplexity_ratio, flips, mcnemar_p
    ...), flat; the interval of NAME is NAME_low and NAME_high, where it is known.
    flags: sentences a reader must know before believing the row. command: reproduces the trial.
    """

    name: str
    engine: str
    quantization: str
    batching: str
    status: Literal["ok", "failed"]
    reason: str
    compute_type: str
    threads: str
    repeats: tuple[Repeat, ...]
    speed: dict[str, Spread]
    quality: dict[str, Estimate]
    quality_notes: dict[str, float | int | None]
    worst_rows: tuple[WorstRow, ...]
    flags: tuple[str, ...]
    command: str


@dataclass(frozen=True, slots=True)
class Effect:
    """What one change alone did, everything else equal: `kind` is batching or quantization."""

    kind: Literal["batching", "quantization"]
    before: str
    after: str
    rows_identical: Estimate
    matched_prefix: Estimate
    speed_ratio: Spread


@dataclass(frozen=True, slots=True)
class Recommendation:
    """trial: the name of the one to use, or "" when none is inside the limits.

    reason: one sentence. given_up: what a faster, smaller or truer trial would have given, in one
    sentence. ties: trials whose difference from it is inside the noise.
    """

    trial: str
    reason: str
    given_up: str
    ties: tuple[str, ...]
    command: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The whole document.

    sample: rows, prompt_tokens, longest_prompt, max_new_tokens, seed of the sampling, input path.
    reference: name of what accuracy is measured against, its rows and tokens, the variant of chrF.
    pareto: names of trials that no other beats in accuracy and throughput at once; knee: one of
    them, or "".
    """

    command: str
    created: str
    model: str
    machine: dict[str, Any]
    versions: dict[str, str]
    sample: dict[str, Any]
    reference: dict[str, Any]
    limits: dict[str, float | None]
    trials: tuple[Trial, ...]
    effects: tuple[Effect, ...]
    pareto: tuple[str, ...]
    knee: str
    recommendation: Recommendation
    format: int = field(default=FORMAT)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
