"""A comparison as data: the content of report.json, from which all other reports are rendered.

Times are seconds, sizes bytes, shares between 0 and 1, chrF from 0 to 100. `FORMAT` changes if a
reader of an older report.json would misread a newer one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Spread:
    """Median over the repeats and its interval [low, high].

    With fewer than 6 repeats the interval is the smallest and the largest value.
    """

    median: float
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean over rows with its 95 % interval [low, high].

    The interval is Wilson's for shares of rows and a bootstrap over rows for everything else.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Repeat:
    """Raw values of one run of one trial.

    Attributes:
        figures: `Meter.to_json` of the trial's process.
        wall_seconds: from start to end of the process.
        peak_memory_bytes: largest resident memory of its process tree.
        energy_joules: measured by RAPL, or None.
        latencies: seconds per row, in input order; None if not measured.
        first_tokens: as latencies.
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
    """A row whose answer differs most from the reference's."""

    id: str
    prompt: str
    reference_text: str
    text: str
    matched_prefix: float
    cosine: float | None


@dataclass(frozen=True, slots=True)
class Trial:
    """One combination of engine, quantization and batching.

    Attributes:
        reason: why the trial failed; `repeats` then holds those that ended well.
        speed: by name of a speed metric in `metric_definitions`; a figure that was not measured is
            absent.
        quality: by name of a quality metric in `metric_definitions`.
        quality_notes: further figures without an entry of their own (counts, cosine_floor,
            perplexity_ratio, flips, mcnemar_p, ...); an interval of NAME is NAME_low and NAME_high.
        flags: warnings about the figures of this trial, in sentences.
        command: reproduces the trial.
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
    """The effect of one change with everything else equal."""

    kind: Literal["batching", "quantization"]
    before: str
    after: str
    rows_identical: Estimate
    matched_prefix: Estimate
    speed_ratio: Spread


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The recommended trial.

    Attributes:
        trial: its name; "" if no trial is within the limits.
        reason: one sentence.
        given_up: advantage of a faster or more accurate trial, in one sentence.
        ties: trials whose difference in speed is within the noise.
    """

    trial: str
    reason: str
    given_up: str
    ties: tuple[str, ...]
    command: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The whole document.

    Attributes:
        sample: rows, prompt_tokens, longest_prompt, max_new_tokens, input path.
        reference: name, rows and tokens of the run that accuracy is measured against; signature of
            chrF.
        pareto: names of the trials that no other beats in both accuracy and throughput.
        knee: one of them, or "".
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
