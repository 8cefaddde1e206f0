from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.batching.expected import Expected
from packhorse.data import Batch, Completion, Failure, Prompt, SamplingParams, Timing
from packhorse.profiling.run_metrics import BUSY, Meter, OtherWork, peak_memory_bytes, quantile


def batch(*lengths: int) -> Batch:
    return Batch(tuple(Prompt(i, (1,) * n, SamplingParams()) for i, n in enumerate(lengths)))


def answer(submitted: float, first: float | None, finished: float, tokens: int) -> Completion:
    timing = Timing(submitted, finished, first)
    return Completion(0, "a", "k", "text", (1,) * tokens, "stop", 10, timing)


def test_padding_is_counted_against_the_longest_row() -> None:
    meter = Meter(cost_rule="padded")
    meter.count_batch(batch(10, 6, 4))  # 30 positions, 20 tokens
    meter.count_batch(batch(10))
    assert meter.padding_share == pytest.approx(10 / 40)
    assert meter.token_by_token_prefill_share is None


def test_forced_decoding_is_counted_from_the_shortest_row() -> None:
    meter = Meter(cost_rule="min-prefix-prefill")
    meter.count_batch(batch(10, 6, 4))  # 4 at once for each, 6 + 2 token by token
    assert meter.token_by_token_prefill_share == pytest.approx(8 / 20)
    assert meter.padding_share is None


def test_a_packed_engine_wastes_neither() -> None:
    meter = Meter(cost_rule="packed")
    meter.count_batch(batch(10, 6, 4))
    assert (meter.padding_share, meter.token_by_token_prefill_share) == (None, None)


def test_memory_is_expected_from_what_the_loaded_model_took() -> None:
    """A later window reuses the memory of the first one."""
    meter = Meter()
    meter.expect(Expected(1.0, 1000))
    first = meter.expected_peak_bytes or 0
    held = numpy.ones(20_000_000, numpy.uint8)
    meter.expect(Expected(2.0, 900))
    assert (meter.expected_seconds, meter.expected_peak_bytes) == (3.0, first)
    meter.expect(Expected(2.0, 1_000_000))
    assert meter.expected_peak_bytes == first + 999_000
    assert held.all()


def test_latencies() -> None:
    meter = Meter()
    meter.count_outcome(answer(1.0, 1.5, 3.5, 5))
    meter.count_outcome(answer(1.0, None, 5.0, 1))
    meter.count_outcome(Failure(3, "engine_error", "x"))
    meter.stage_seconds["generate"] = 2.0
    figures = meter.to_json()
    assert figures["latency_seconds"] == {"p50": 3.25, "p95": pytest.approx(3.925), "p99": None}
    assert figures["first_token_seconds"]["p50"] == 0.5
    assert figures["seconds_per_token"]["p50"] == pytest.approx(2.0 / 4)
    assert (figures["rows_completed"], figures["rows_failed"]) == (2, 1)
    assert figures["generated_tokens_per_second"] == 3.0
    assert figures["failed_by_code"] == {"engine_error": 1}


def test_p99_needs_a_hundred_rows() -> None:
    meter = Meter()
    for second in range(100):
        meter.count_outcome(answer(0.0, None, float(second), 1))
    assert meter.to_json()["latency_seconds"]["p99"] == pytest.approx(98.01)


def test_nothing_measured_is_none_and_not_zero() -> None:
    figures = Meter().to_json()
    assert figures["rows_per_second"] is None
    assert figures["latency_seconds"]["p50"] is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_quantile_is_numpy_s(values: list[float], share: float) -> None:
    assert quantile(sorted(values), share) == pytest.approx(
        float(numpy.quantile(values, share)), rel=1e-9, abs=1e-6
    )


def test_peak_memory_is_at_least_what_is_held() -> None:
    held = bytearray(64 << 20)
    held[::4096] = b"x" * len(held[::4096])
    assert peak_memory_bytes() >= 64 << 20


@pytest.mark.slow
def test_what_others_take_of_the_machine_is_seen() -> None:
    endless = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(endless) for _ in range(os.cpu_count() or 1)]
    try:
        work = OtherWork()
        time.sleep(1)
        assert work.share() > 4 * BUSY
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_ones_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    real, own = psutil.cpu_times(), iter((10.0, 13.0))
    spent = iter((real, real._replace(user=real.user + 3.5, idle=real.idle + 6.5)))
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [next(spent)])
    monkeypatch.setattr("packhorse.profiling.run_metrics.processor_seconds", lambda: next(own))
    assert OtherWork().share() == pytest.approx(0.05)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no cores of one's own")
@pytest.mark.parametrize(("busy_core", "share"), [(2, 0.25), (5, 0.0)])
def test_only_cores_that_may_be_used_count(
    monkeypatch: pytest.MonkeyPatch, busy_core: int, share: float
) -> None:
    """Two of 64 cores; others keep one of the two, or another core, busy half of the time."""
    import psutil

    idle = psutil.cpu_times()._replace(**dict.fromkeys(psutil.cpu_times()._fields, 0.0))

    def after(seconds: float) -> list[Any]:
        cores: list[Any] = [idle._replace(idle=seconds)] * 64
        cores[busy_core] = idle._replace(user=seconds / 2, idle=seconds / 2)
        return cores

    spent = iter((after(0.0), after(10.0)))
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: next(spent))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 2})
    monkeypatch.setattr("packhorse.profiling.run_metrics.processor_seconds", lambda: 0.0)
    assert OtherWork().share() == pytest.approx(share)
