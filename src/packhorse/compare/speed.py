"""Speed of a trial: every figure's spread over the repeats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from packhorse.compare.document import Repeat, Spread
from packhorse.evaluation.statistics import median_interval


def speed(repeats: Sequence[Repeat]) -> dict[str, Spread]:
    """Spread over the repeats of every figure that all of them have; names as in `Trial.speed`."""
    found = {}
    for name, value_of in _SPEED.items():
        values = [value_of(repeat) for repeat in repeats]
        known = [float(value) for value in values if value is not None]
        interval = median_interval(known)
        if interval is not None and len(known) == len(values):
            low = interval.value if interval.low is None else interval.low
            high = interval.value if interval.high is None else interval.high
            found[name] = Spread(interval.value, low, high, tuple(known))
    return found


def _session_value(*path: str) -> Callable[[Repeat], float | None]:
    def value_of(repeat: Repeat) -> float | None:
        value: Any = repeat.figures
        for name in path:
            value = None if value is None else value.get(name)
        return value  # type: ignore[no-any-return]

    return value_of


_SPEED: dict[str, Callable[[Repeat], float | None]] = {
    "wall_seconds": lambda repeat: repeat.wall_seconds,
    "load_seconds": _session_value("seconds", "load"),
    "generate_seconds": _session_value("seconds", "generate"),
    "rows_per_second": _session_value("rows_per_second"),
    "prompt_tokens_per_second": _session_value("prompt_tokens_per_second"),
    "generated_tokens_per_second": _session_value("generated_tokens_per_second"),
    "total_tokens_per_second": _session_value("total_tokens_per_second"),
    "latency_p50": _session_value("latency_seconds", "p50"),
    "latency_p95": _session_value("latency_seconds", "p95"),
    "latency_p99": _session_value("latency_seconds", "p99"),
    "first_token_p50": _session_value("first_token_seconds", "p50"),
    "first_token_p95": _session_value("first_token_seconds", "p95"),
    "seconds_per_token_p50": _session_value("seconds_per_token", "p50"),
    "peak_memory_bytes": lambda repeat: repeat.peak_memory_bytes,
    "processor_seconds": lambda repeat: repeat.processor_seconds,
    "energy_joules": lambda repeat: repeat.energy_joules,
    "padding_share": _session_value("padding_share"),
    "token_by_token_prefill_share": _session_value("token_by_token_prefill_share"),
    "batches": _session_value("batches"),
    "generated_tokens": _session_value("generated_tokens"),
}
