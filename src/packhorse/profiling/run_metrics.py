"""What a run measures while it happens. Counts are of what came back, not of what was asked for."""

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


def quantile(sorted_values: Sequence[float], share: float) -> float | None:
    """Linear interpolation between order statistics (Hyndman and Fan's type 7, numpy's default).

    None for no values.
    """
    if not sorted_values:
        return None
    position = share * (len(sorted_values) - 1)
    below = int(position)
    above = min(below + 1, len(sorted_values) - 1)
    return sorted_values[below] + (position - below) * (sorted_values[above] - sorted_values[below])


def current_memory_bytes() -> int:
    """Resident memory of this process (bytes)."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far (bytes).

    Linux: VmHWM. `ru_maxrss`, used elsewhere, starts there from the size of the process that
    started this one.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> int:
    """Lets `peak_memory_bytes` count from what is resident now, where the system can (Linux);
    returns what it counts from (bytes)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_bytes()


def processor_seconds() -> float:
    """User and system time of this process and its ended children (CPU seconds)."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


BUSY = 0.1
"""Share of the usable cores taken by others above which figures are not those of the machine."""


class OtherWork:
    """What the cores that this process may use do for others from now on: for other processes and,
    on a virtual machine, for other guests of its host (steal)."""

    def __init__(self) -> None:
        self._others, self._all = self._seconds()

    def share(self) -> float:
        """0 to 1: core seconds for others / core seconds that there were. Ended children of this
        process count as itself, those under way as others."""
        others, everything = self._seconds()
        passed = everything - self._all
        if passed <= 0:
            return 0.0
        ours = passed * self._quota_share()  # what others do beyond it takes nothing from us
        taken = others - self._others - (passed - ours)
        return min(1.0, max(0.0, taken / ours))

    @staticmethod
    def _quota_share() -> float:
        """What the cgroup lets this process use of its cores: 0 to 1."""
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        return min(1.0, (core_quota() or cores) / cores)

    @staticmethod
    def _seconds() -> tuple[float, float]:
        """Core seconds for others and core seconds, both since the machine started."""
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
    """Counters of one session of a job: one process, from its start to its end.

    latencies: seconds from submission (the engine takes the row's batch) to the row's last token.
    first_token_latencies: the same to its first token, for the rows whose engine can tell.
    padding_tokens, prompt_positions: positions of padding, and all positions, computed for prompts
        by an engine that pads. forced_tokens: prompt tokens computed one step at a time by an
        engine that computes only the shortest prompt's length at once. prefix_tokens_saved: prompt
        tokens that were not computed because rows share them. rows_deduplicated: rows that got the
        outcome of an equal one; they count as completed or failed and in no other figure.
    expected_seconds, expected_peak_bytes: of the stage "generate" and of this process, as each
        window of rows was planned; None where the engine is not calibrated.
    other_work: of the machine since this session began.
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
        """Adds the wall seconds of the block to `stage_seconds[name]`."""
        started = time.monotonic()
        try:
            yield
        finally:
            elapsed = time.monotonic() - started
            self.stage_seconds[name] = self.stage_seconds.get(name, 0.0) + elapsed

    def expect(self, expected: Expected) -> None:
        """Adds what a window of the job was expected to take when it was planned."""
        if self._loaded_bytes is None:
            self._loaded_bytes = current_memory_bytes()  # later windows find memory that was used
        peak = self._loaded_bytes + expected.peak_bytes
        self.expected_peak_bytes = max(peak, self.expected_peak_bytes or 0)
        self.expected_seconds = expected.seconds + (self.expected_seconds or 0.0)

    def count_batch(self, batch: Batch) -> None:
        """Padding and forced tokens follow from the lengths and the engine's cost rule."""
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
        """A row that got the outcome of an equal one; it took no time and generated nothing."""
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
        self._count_row(timing, outcome.prompt_tokens)
        self.generated_tokens += outcome.completion_tokens
        if timing.first_token is not None:
            self.first_token_latencies.append(timing.first_token - timing.submitted)
            if outcome.completion_tokens > 1:
                self.token_latencies.append(
                    (timing.finished - timing.first_token) / (outcome.completion_tokens - 1)
                )

    def count_scores(self, scores: Scores, prompt_tokens: int) -> None:
        """A row whose continuations were scored; it generated nothing."""
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
        """Force-decoded / all prompt tokens; None for an engine that forces none."""
        if self.cost_rule != "min-prefix-prefill":
            return None
        total = self.batched_prompt_tokens
        return self.token_by_token_prefill_tokens / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Figures of the session; rates are per second of the stage "generate"."""
        seconds = self.stage_seconds.get("generate", 0.0)

        def per_second(count: float) -> float | None:
            return count / seconds if seconds > 0 else None

        return {
            "rows_completed": self.rows_completed,
            "rows_failed": sum(self.failures.values()),
            "failed_by_code": dict(sorted(self.failures.items())),
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
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
    """p50, p95 and p99; a p99 from fewer than 100 values would be their maximum, so it is None."""
    ordered = sorted(values)
    return {
        "p50": quantile(ordered, 0.50),
        "p95": quantile(ordered, 0.95),
        "p99": quantile(ordered, 0.99) if len(ordered) >= 100 else None,
    }
