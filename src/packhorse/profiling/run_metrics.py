"""Metrics of a run, counted from what the engine returned rather than what was requested."""

from __future__ import annotations

import os
import resource
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packhorse.batching.expected import Expected
from packhorse.cgroups import core_quota
from packhorse.data import Batch, Completion, Failure, Scores, Timing
from packhorse.profiling.cores import affinity_cores


def quantile(sorted_values: Sequence[float], share: float) -> float | None:
    """Return a quantile by linear interpolation between order statistics; None for no values.

    This is type 7 of Hyndman and Fan, numpy's default.
    """
    if not sorted_values:
        return None
    position = share * (len(sorted_values) - 1)
    below = int(position)
    above = min(below + 1, len(sorted_values) - 1)
    return sorted_values[below] + (position - below) * (sorted_values[above] - sorted_values[below])


def current_memory_bytes() -> int:
    """Return the resident memory of this process (bytes)."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process so far (bytes).

    On Linux this is VmHWM. `ru_maxrss`, used elsewhere, starts on Linux from the size of the parent
    process.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> int:
    """Reset the peak of `peak_memory_bytes` to the memory resident now, if the system can (Linux).

    Returns:
        The peak after the reset (bytes).
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_bytes()


def processor_seconds() -> float:
    """Return user and system time of this process and its ended children (CPU seconds)."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


BUSY = 0.1
"""Share of the usable cores used by other processes above which timings are disturbed."""


class OtherWork:
    """CPU time that others use on this process's cores from now on.

    Others are other processes and, on a virtual machine, other guests of its host (steal).
    """

    def __init__(self) -> None:
        self._others, self._all = self._seconds()

    def share(self) -> float:
        """Return core seconds used by others / core seconds available to this process, 0 to 1.

        Ended children of this process count as itself, running ones as others.
        """
        others, everything = self._seconds()
        passed = everything - self._all
        if passed <= 0:
            return 0.0
        ours = (
            passed * self._quota_share()
        )  # what others use beyond our quota does not slow us down
        taken = others - self._others - (passed - ours)
        return min(1.0, max(0.0, taken / ours))

    @staticmethod
    def _quota_share() -> float:
        """Return the share of its cores that the cgroup allows this process to use, 0 to 1."""
        cores = affinity_cores()
        return min(1.0, (core_quota() or cores) / cores)

    @staticmethod
    def _seconds() -> tuple[float, float]:
        """Return core seconds used by others and all core seconds, both since boot."""
        import psutil

        cores = [core._asdict() for core in psutil.cpu_times(percpu=True)]
        usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        if usable and max(usable) < len(cores):
            cores = [cores[core] for core in usable]
        idle = everything = 0.0
        for times in cores:
            everything += sum(times.values())
            everything -= times.get("guest", 0.0) + times.get("guest_nice", 0.0)
            idle += times["idle"] + times.get("iowait", 0.0)
        return everything - idle - processor_seconds(), everything


@dataclass(slots=True)
class Meter:
    """Metrics of one session of a job: one process, from its start to its end.

    Attributes:
        cost_rule: Cost rule of the engine.
        latencies: Seconds from submission (the engine takes the row's batch) to the row's last
            token.
        first_token_latencies: Seconds from submission to the first token, if the engine reports it.
        padding_tokens: Padding positions computed for prompts by an engine that pads.
        token_by_token_prefill_tokens: Prompt tokens computed one step at a time by an engine that
            prefills only the length of the shortest prompt.
        prefix_tokens_saved: Prompt tokens not computed because rows share them.
        reasoning_tokens: Generated tokens of reasoning and its tags; None for a model without tags.
        rows_deduplicated: Rows that got the outcome of an equal row; they count as completed or
            failed and in no other metric.
        expected_seconds: Expected time of the stage "generate", summed as windows were planned;
            None if the engine is not calibrated.
        expected_peak_bytes: Expected peak memory of this process; None likewise.
        other_work: CPU time used by others since this session began.
    """

    cost_rule: str = "padded"
    rows_completed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    generated_tokens: int = 0
    batches: int = 0
    batched_rows: int = 0
    batched_prompt_tokens: int = 0
    padding_tokens: int = 0
    token_by_token_prefill_tokens: int = 0
    prefix_tokens_saved: int = 0
    rows_deduplicated: int = 0
    reasoning_tokens: int | None = None
    _prefixes: set[int] = field(default_factory=set)
    latencies: array[float] = field(default_factory=lambda: array("d"))
    first_token_latencies: array[float] = field(default_factory=lambda: array("d"))
    token_latencies: array[float] = field(default_factory=lambda: array("d"))
    expected_seconds: float | None = None
    expected_peak_bytes: int | None = None
    _loaded_bytes: int | None = None
    stage_seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    other_work: OtherWork = field(default_factory=OtherWork)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to `stage_seconds[name]`."""
        started = time.monotonic()
        try:
            yield
        finally:
            elapsed = time.monotonic() - started
            self.stage_seconds[name] = self.stage_seconds.get(name, 0.0) + elapsed

    def expect(self, expected: Expected) -> None:
        """Add the expected cost of a window when it was planned."""
        if self._loaded_bytes is None:
            self._loaded_bytes = current_memory_bytes()  # before a window runs
        peak = self._loaded_bytes + expected.peak_bytes
        self.expected_peak_bytes = max(peak, self.expected_peak_bytes or 0)
        self.expected_seconds = expected.seconds + (self.expected_seconds or 0.0)

    def count_batch(self, batch: Batch) -> None:
        """Count a batch; padding and token-by-token prefill follow from lengths and cost rule."""
        lengths = [len(prompt.token_ids) - batch.shared_prefix for prompt in batch.prompts]
        self.batches += 1
        self.batched_rows += len(lengths)
        self.batched_prompt_tokens += sum(lengths)
        if batch.shared_prefix:
            prefix = hash(batch.prompts[0].token_ids[: batch.shared_prefix])
            spared = len(lengths) - (prefix not in self._prefixes)
            self.prefix_tokens_saved += spared * batch.shared_prefix
            self._prefixes.add(prefix)
        if self.cost_rule == "padded":
            self.padding_tokens += len(lengths) * max(lengths) - sum(lengths)
        elif self.cost_rule == "min-prefix-prefill":
            self.token_by_token_prefill_tokens += sum(lengths) - len(lengths) * min(lengths)

    def count_duplicate(self, outcome: Completion | Failure) -> None:
        """Count a row that got an equal row's outcome; it took no time and generated nothing."""
        self.rows_deduplicated += 1
        if isinstance(outcome, Failure):
            self.failures[outcome.code] += 1
        else:
            self.rows_completed += 1

    def count_outcome(self, outcome: Completion | Failure) -> None:
        if isinstance(outcome, Failure):
            self.failures[outcome.code] += 1
            return
        timing = outcome.timing
        if outcome.index >= 0:  # not of a further choice of a row
            self._count_row(timing, outcome.prompt_tokens)
        self.generated_tokens += outcome.completion_tokens
        if outcome.reasoning_tokens is not None:
            self.reasoning_tokens = (self.reasoning_tokens or 0) + outcome.reasoning_tokens
        if timing.first_token is not None:
            self.first_token_latencies.append(timing.first_token - timing.submitted)
            if outcome.completion_tokens > 1:
                self.token_latencies.append(
                    (timing.finished - timing.first_token) / (outcome.completion_tokens - 1)
                )

    def count_scores(self, scores: Scores, prompt_tokens: int) -> None:
        """Count a row whose continuations were scored; it generated nothing."""
        self._count_row(scores.timing, prompt_tokens)

    def _count_row(self, timing: Timing, prompt_tokens: int) -> None:
        self.rows_completed += 1
        self.prompt_tokens += prompt_tokens
        self.latencies.append(timing.finished - timing.submitted)

    @property
    def padding_share(self) -> float | None:
        """Padding / all prompt positions computed; None for an engine that does not pad."""
        if self.cost_rule != "padded":
            return None
        positions = self.padding_tokens + self.batched_prompt_tokens
        return self.padding_tokens / positions if positions else 0.0

    @property
    def token_by_token_prefill_share(self) -> float | None:
        """Prompt tokens computed step by step / all prompt tokens; None for engines that do not."""
        if self.cost_rule != "min-prefix-prefill":
            return None
        total = self.batched_prompt_tokens
        return self.token_by_token_prefill_tokens / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the metrics of the session; rates are per second of the stage "generate"."""
        seconds = self.stage_seconds.get("generate", 0.0)

        def per_second(count: float) -> float | None:
            return count / seconds if seconds > 0 else None

        return {
            "rows_completed": self.rows_completed,
            "rows_failed": sum(self.failures.values()),
            "failed_by_code": dict(sorted(self.failures.items())),
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "batches": self.batches,
            "rows_per_batch": self.batched_rows / self.batches if self.batches else None,
            "padding_share": self.padding_share,
            "token_by_token_prefill_share": self.token_by_token_prefill_share,
            "prefix_tokens_saved": self.prefix_tokens_saved,
            "rows_deduplicated": self.rows_deduplicated,
            "seconds": {**self.stage_seconds, "total": time.monotonic() - self.started},
            "rows_per_second": per_second(self.rows_completed),
            "prompt_tokens_per_second": per_second(self.prompt_tokens),
            "generated_tokens_per_second": per_second(self.generated_tokens),
            "total_tokens_per_second": per_second(self.prompt_tokens + self.generated_tokens),
            "latency_seconds": _quantiles(self.latencies),
            "first_token_seconds": _quantiles(self.first_token_latencies),
            "seconds_per_token": _quantiles(self.token_latencies),
            "expected": None
            if self.expected_seconds is None
            else {
                "generate_seconds": self.expected_seconds,
                "peak_memory_bytes": self.expected_peak_bytes,
            },
            "processor_seconds": processor_seconds(),
            "other_work_share": self.other_work.share(),
            "peak_memory_bytes": peak_memory_bytes(),
        }


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """Return p50, p95 and p99; None for a p99 of fewer than 100 values (their maximum)."""
    ordered = sorted(values)
    return {
        "p50": quantile(ordered, 0.50),
        "p95": quantile(ordered, 0.95),
        "p99": quantile(ordered, 0.99) if len(ordered) >= 100 else None,
    }
