"""Work counted by hand, output lengths against scipy, and segments against single batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.batching.cost import (
    CostModel,
    Costs,
    Expectation,
    OutputLengths,
    PrefillMemory,
    WorkCounts,
    count_work,
)
from packhorse.batching.expected import batch_bytes, expect
from packhorse.batching.segments import LIMIT_LEVELS, Segments
from packhorse.batching.sizes import RowSize
from packhorse.data import Batch, Prompt, SamplingParams
from packhorse.engine_protocol import CostRule
from packhorse.engines.fake import FakeEngine

RULES: list[CostRule] = ["padded", "min-prefix-prefill", "packed"]
TWO = [RowSize(6, 9, shared=10), RowSize(4, 9, shared=10)]
COEFFICIENTS = WorkCounts(0.5, 0.01, 1e-4, 0.2, 0.03, 1e-3)


def always_to_the_limit(*limits: int) -> OutputLengths:
    outputs = OutputLengths()
    for limit in limits:
        for _ in range(3):
            outputs.limited[limit] += 10**12
    return outputs


@pytest.mark.parametrize(
    ("rule", "work"),
    [
        # both prompts as 6 wide; 2 and 1 steps after the first token
        ("padded", WorkCounts(1, 12, 2 * 6 * 13.0, 2, 3, 2 * (16 + 1) + 1 * (16 + 0.5))),
        # both prompts 4 wide; the longer one is forced through 2 more steps
        ("min-prefix-prefill", WorkCounts(1, 8, 2 * 4 * 12.0, 5, 7, 5 * (14 + 2.5) + 2 * (14 + 1))),
        ("packed", WorkCounts(1, 10, 6 * 13.0 + 4 * 12.0, 2, 3, 2 * (16 + 1) + 1 * (14 + 0.5))),
    ],
)
def test_work_of_two_rows(rule: CostRule, work: WorkCounts) -> None:
    assert count_work(rule, TWO, [3, 2]) == work


def test_seconds_are_the_sum_of_the_parts() -> None:
    assert CostModel("padded", 1, COEFFICIENTS).seconds(
        WorkCounts(1, 2, 3, 4, 5, 6)
    ) == pytest.approx(0.5 + 0.02 + 3e-4 + 0.8 + 0.15 + 6e-3)


@pytest.mark.parametrize("rule", ["padded", "min-prefix-prefill"])
@given(prompts=st.lists(st.integers(1, 200), min_size=1, max_size=20), shared=st.integers(0, 50))
def test_segments_cost_what_their_batches_cost(
    rule: CostRule, prompts: list[int], shared: int
) -> None:
    costs = Costs(CostModel(rule, 1, COEFFICIENTS), always_to_the_limit(7))
    sizes = [RowSize(length, 7, shared) for length in sorted(prompts, reverse=True)]
    for stop in range(1, len(sizes) + 1):
        found = Segments(costs, sizes, len(sizes)).seconds_to(stop)
        for rows, seconds in enumerate(found, start=1):
            batch = sizes[stop - rows : stop]
            exact = costs.model.seconds(count_work(rule, batch, [7] * rows))
            assert seconds == pytest.approx(exact, rel=1e-9)


def test_segments_tell_limits_apart() -> None:
    costs = Costs(CostModel("padded", 1, WorkCounts(0, 0, 0, 1, 0, 0)), always_to_the_limit(5, 90))
    sizes = [RowSize(9, 5), RowSize(8, 90), RowSize(7, 5)]
    assert Segments(costs, sizes, 3).seconds_to(3) == pytest.approx([4, 89, 89])


def test_many_limits_become_few_and_none_becomes_smaller() -> None:
    sizes = [RowSize(10, new) for new in range(1, 200)]
    chosen = Segments(Costs(CostModel("padded", 1, COEFFICIENTS)), sizes, 4).new
    assert len(np.unique(chosen)) <= LIMIT_LEVELS
    assert all(chosen >= range(1, 200))


def test_survival_is_kaplan_and_meiers() -> None:
    from scipy.stats import CensoredData, ecdf

    random = np.random.default_rng(1)
    lengths = random.integers(1, 60, 4000)
    outputs = OutputLengths()
    for length in lengths:
        outputs.observe(min(int(length) - 1, 40), reached_limit=length - 1 >= 40)
    ended = lengths[lengths - 1 < 40]
    limited = np.full(len(lengths) - len(ended), 40)
    theirs = ecdf(CensoredData(uncensored=ended, right=limited)).sf
    assert outputs.survival(40) == pytest.approx(theirs.evaluate(np.arange(40)), abs=2e-3)


def test_nothing_seen_is_the_prior() -> None:
    expected = Expectation(OutputLengths().survival(10_000))
    assert expected.mean == pytest.approx(128, rel=0.01)
    assert expected.survival[0] == 1


def test_expectation_of_the_longest() -> None:
    """Two rows of 1 or 3 tokens, equally likely: the maximum is 1 in a quarter of the cases."""
    expected = Expectation(np.array([1.0, 0.5, 0.5]))
    assert expected.mean == 2
    assert expected.mean_square == 5
    assert expected.longest(2) == pytest.approx([0, 2, 2.5])


@given(st.lists(st.tuples(st.integers(0, 80), st.booleans()), max_size=40), st.integers(1, 100))
def test_survival_falls_from_one(seen: list[tuple[int, bool]], limit: int) -> None:
    outputs = OutputLengths()
    for tokens, reached_limit in seen:
        outputs.observe(tokens, reached_limit=reached_limit and tokens > 0)
    survival = outputs.survival(limit)
    assert survival.shape == (limit,)
    assert survival[0] == 1
    assert all(np.diff(survival) <= 0)
    assert all(survival >= 0)


def test_makespan_is_of_the_worker_that_ends_last() -> None:
    two = Costs(CostModel("padded", 2, COEFFICIENTS))
    assert two.makespan([3, 2, 2]) == 4
    assert two.makespan([]) == 0


def test_memory_of_a_batch_by_hand() -> None:
    """Two rows of 16 and 14 positions, 3 tokens each, with a margin of 15 %.

    The attention scores of long prompts outweigh their cache.
    """
    capabilities = replace(FakeEngine(cost_rule="padded").capabilities, cache_bytes_per_token=100)
    outputs = always_to_the_limit(3)
    small = Costs(CostModel("padded", 1, COEFFICIENTS), outputs, PrefillMemory(110, 3))
    sizes = [RowSize(6, 3, shared=10), RowSize(4, 3, shared=10)]
    assert batch_bytes(sizes, small, capabilities) == round(1.15 * 2 * (16 * 110 + 6 * 16 * 3))
    without_pairs = replace(small, memory=PrefillMemory(110, 0))
    assert batch_bytes(sizes, without_pairs, capabilities) == round(1.15 * 2 * (16 + 3) * 100)
    forced = replace(capabilities, cost_rule="min-prefix-prefill", step_bytes_per_row=7)
    assert batch_bytes(sizes, small, forced) == round(2 * (1.15 * 19 * 100 + 7))


def test_memory_is_of_the_largest_batch_on_every_worker() -> None:
    capabilities = replace(FakeEngine(workers=2).capabilities, cache_bytes_per_token=1)
    costs = Costs(CostModel("padded", 2, COEFFICIENTS), always_to_the_limit(1))
    batches = [
        Batch((Prompt(0, (5,) * length, SamplingParams(max_new_tokens=1)),))
        for length in (9, 99, 49)
    ]
    assert expect(batches, costs, capabilities).peak_bytes == round(1.15 * 100) + round(1.15 * 50)


def test_rows_that_come_and_go_are_one_batch_in_an_engine_without_batches() -> None:
    capabilities = replace(
        FakeEngine(cost_rule="packed").capabilities,
        max_num_seqs=2,
        cache_bytes_per_token=10,
        preferred_batch_tokens=1000,
    )
    costs = Costs(CostModel("packed", 1, COEFFICIENTS), always_to_the_limit(4))
    lengths = [(30, 10), (12, 10), (50, 0)]
    batches = [
        Batch((Prompt(0, (5,) * length, SamplingParams(max_new_tokens=4)),), shared)
        for length, shared in lengths
    ]
    rows = [RowSize(length - shared, 4, shared) for length, shared in lengths]
    apart = [count_work("packed", [row], [4]) for row in rows]
    work = WorkCounts(*map(sum, zip(*apart, strict=True)))._replace(batches=1, steps=3)
    found = expect(batches, costs, capabilities)
    assert found.seconds == pytest.approx(costs.model.seconds(work))
    assert found.peak_bytes == (54 + 34) * 10
    assert (
        expect(batches, costs, replace(capabilities, preferred_batch_tokens=60)).peak_bytes == 600
    )
    assert expect([], costs, capabilities).seconds == 0
