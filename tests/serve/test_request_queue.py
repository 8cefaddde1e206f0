"""Who waits and who goes next, in virtual time: tables for the rules, laws for the promises."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from packhorse.batching.policies import POLICIES
from packhorse.batching.sizes import Limits
from packhorse.data import Batch, Prompt, SamplingParams
from packhorse.engine_protocol import EngineCapabilities
from packhorse.serve.config import QueueConfig
from packhorse.serve.request_queue import Batching, RequestQueue, expected_batch_seconds, tokens_of

TRAITS = EngineCapabilities("any", "padded", "cpu", "float32", 1, 1, 4096, 0, 1)
JOINED = replace(TRAITS, cost_rule="packed", max_num_seqs=64)
WAITS = QueueConfig(
    max_delay_seconds=0.02, max_wait_seconds=10.0, max_rows=1024, max_tokens=1 << 20
)


def row(index: int, prompt: int, new: int = 8) -> Prompt:
    return Prompt(index, (1,) * prompt, SamplingParams(max_new_tokens=new))


def waiting(
    capabilities: EngineCapabilities = TRAITS,
    policy: str = "sorted-dynamic",
    tokens: int = 256,
    **waits: Any,
) -> RequestQueue:
    batching = Batching(capabilities, policy, Limits(8, tokens))
    return RequestQueue(replace(WAITS, **waits), batching)


def indexes(batch: Batch | None) -> list[int]:
    return [] if batch is None else sorted(prompt.index for prompt in batch.prompts)


def test_a_batch_closes_when_its_oldest_row_is_old_enough() -> None:
    rows = waiting()
    rows.add([row(0, 10)], now=1.0)
    rows.add([row(1, 10)], now=1.015)
    assert rows.next_batch_at() == pytest.approx(1.02)
    assert rows.next_batch(1.019) is None
    assert indexes(rows.next_batch(1.02)) == [0, 1]
    assert (len(rows), rows.tokens, rows.next_batch_at()) == (0, 0, None)


def test_a_batch_closes_at_once_when_it_is_full() -> None:
    rows = waiting(tokens=64)
    rows.add([row(number, 8) for number in range(4)], now=5.0)
    assert rows.next_batch_at() == 5.0
    assert indexes(rows.next_batch(5.0)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("policy", "most"), [("single", 1), ("fixed", 8), ("sorted", 8)])
def test_policies_that_count_rows_close_by_rows(policy: str, most: int) -> None:
    rows = waiting(policy=policy, tokens=1 << 20)
    rows.add([row(number, 8) for number in range(most)], now=0.0)
    assert len(indexes(rows.next_batch(0.0))) == most


def test_an_engine_that_rows_join_makes_nobody_wait() -> None:
    rows = waiting(JOINED)
    rows.add([row(0, 1000), row(1, 1)], now=0.0)
    assert indexes(rows.next_batch(0.0)) == [0, 1]


def test_nothing_is_taken_while_no_engine_is_there() -> None:
    rows = RequestQueue(WAITS)
    assert rows.add([row(0, 1)], now=0.0)
    assert (rows.next_batch_at(), rows.next_batch(100.0)) == (None, None)


@pytest.mark.parametrize(
    ("limits", "accepted"),
    [({"max_rows": 3}, [True, False, True]), ({"max_tokens": 60}, [True, False, True])],
)
def test_too_many_are_refused_whole(limits: dict[str, Any], accepted: list[bool]) -> None:
    rows = waiting(**limits)
    offers = [[row(0, 12), row(1, 12)], [row(2, 12), row(3, 12)], [row(4, 2)]]
    assert [rows.add(add, 0.0) for add in offers] == accepted
    assert rows.tokens == 50
    assert len(rows) == 3


def test_one_row_larger_than_the_queue_is_taken_alone() -> None:
    rows = waiting(max_tokens=10)
    assert not rows.add([row(2, 100), row(3, 100)], 0.0)
    assert rows.add([row(0, 100)], 0.0)
    assert not rows.add([row(1, 1)], 0.0)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_what_could_be_held_is_what_an_empty_queue_takes(lengths: list[int]) -> None:
    rows = waiting(max_rows=4, max_tokens=90)
    prompts = [row(index, length) for index, length in enumerate(lengths)]
    could = rows.can_hold(len(prompts), sum(map(tokens_of, prompts)))
    assert rows.add(prompts, 0.0) == could


def test_who_leaves_frees_its_place() -> None:
    rows = waiting(max_rows=1)
    rows.add([row(0, 5)], 0.0)
    assert rows.remove(0)
    assert not rows.remove(0)
    assert rows.add([row(1, 5)], 0.0)


def test_a_short_row_passes_long_ones_that_came_before() -> None:
    rows = waiting()
    rows.add([row(number, 200) for number in range(10)], now=0.0)
    rows.add([row(10, 4)], now=1.0)
    order = [indexes(rows.next_batch(1.5)) for _ in range(11)]
    assert order[0] == [10]


def test_a_row_without_patience_left_goes_before_shorter_ones() -> None:
    rows = waiting()
    rows.add([row(0, 250)], now=0.0)
    rows.add([row(number, 1) for number in range(1, 5)], now=8.0)
    assert indexes(rows.next_batch(9.9)) == [1, 2, 3, 4]
    rows.add([row(5, 1)], now=9.0)
    assert indexes(rows.next_batch(10.0)) == [0]


@dataclass(frozen=True)
class Served:
    """What became of a row: seconds of virtual time."""

    arrived: float
    began: float


def simulate(
    rows: RequestQueue, arrivals: list[tuple[float, Prompt]], workers: int
) -> dict[int, Served]:
    """An engine that takes each batch as long as it was expected to; until nobody waits."""
    assert rows.batching is not None
    coming = sorted(arrivals, key=lambda each: each[0])
    arrived: dict[int, float] = {}
    served: dict[int, Served] = {}
    free = [0.0] * workers
    now = 0.0
    while coming or len(rows):
        while coming and coming[0][0] <= now:
            moment, prompt = coming.pop(0)
            if rows.add([prompt], moment):
                arrived[prompt.index] = moment
        batch = rows.next_batch(now) if free[0] <= now else None
        if batch is not None:
            for prompt in batch.prompts:
                assert prompt.index not in served
                served[prompt.index] = Served(arrived[prompt.index], now)
            heapq.heapreplace(free, now + expected_batch_seconds(batch, rows.batching.limits))
            continue
        due = rows.next_batch_at()
        moments = [coming[0][0]] if coming else []
        moments += [max(due, free[0])] if due is not None else []
        assert moments
        now = max(now, min(moments))
    assert served.keys() == arrived.keys()
    return served


UNCALIBRATED = [name for name in POLICIES if name not in ("planned", "continuous")]
ARRIVALS = st.lists(
    st.tuples(st.floats(0, 5), st.integers(1, 200), st.integers(1, 60)), min_size=1, max_size=60
)


@pytest.mark.slow
@given(ARRIVALS, st.sampled_from(UNCALIBRATED), st.integers(1, 3), st.floats(0, 3))
def test_every_row_runs_once_and_no_row_waits_for_ever(
    arrivals: list[tuple[float, int, int]], policy: str, workers: int, patience: float
) -> None:
    """The bound: patience, then the batches under way and all that came before, one by one."""
    rows = waiting(policy=policy, max_wait_seconds=patience)
    limits = rows.batching.limits  # type: ignore[union-attr]
    prompts = [(moment, row(index, prompt, new))
               for index, (moment, prompt, new) in enumerate(arrivals)]  # fmt: skip
    alone = {
        prompt.index: expected_batch_seconds(Batch((prompt,)), limits) for _, prompt in prompts
    }
    most = max(alone.values()) * 8
    served = simulate(rows, prompts, workers)
    assert len(served) == len(prompts)
    for mine in served.values():
        before = [alone[other] for other, each in served.items() if each.arrived <= mine.arrived]
        bound = WAITS.max_delay_seconds + patience + most + 8 * sum(before)
        assert mine.began - mine.arrived <= bound


def test_a_stream_of_short_rows_does_not_starve_a_long_one() -> None:
    """Short rows come faster than the engine can run them, for a minute."""
    rows = waiting()
    short = [(0.01 * number, row(number, 20, 10)) for number in range(6000)]
    served = simulate(rows, [*short, (5.0, row(9999, 900, 60))], workers=1)
    assert served[9999].began - 5.0 <= WAITS.max_wait_seconds + 4.0


def test_a_flood_of_long_rows_does_not_hold_short_ones() -> None:
    """Long rows take a second each and there are a hundred; short ones wait for one of them."""
    rows = waiting(tokens=1100)
    longs = [(0.0, row(number, 900, 100)) for number in range(100)]
    shorts = [(2.0 + number, row(100 + number, 10, 10)) for number in range(5)]
    served = simulate(rows, [*longs, *shorts], workers=1)
    for number in range(5):
        mine = served[100 + number]
        assert mine.began - mine.arrived <= 1.1


@given(st.lists(st.integers(1, 100), min_size=1, max_size=80))
def test_rows_join_in_the_order_they_came(lengths: list[int]) -> None:
    rows = waiting(JOINED, policy="single")
    rows.add([row(index, length) for index, length in enumerate(lengths)], 0.0)
    order: list[int] = []
    while (batch := rows.next_batch(0.0)) is not None:
        order += [prompt.index for prompt in batch.prompts]
    assert order == list(range(len(lengths)))


@pytest.mark.slow
@given(st.data())
def test_tokens_are_those_of_the_rows_that_wait(data: st.DataObject) -> None:
    rows = waiting()
    inside: dict[int, int] = {}
    for index in range(data.draw(st.integers(1, 40))):
        prompt = row(index, data.draw(st.integers(1, 99)))
        if rows.add([prompt], float(index)):
            inside[index] = tokens_of(prompt)
        if data.draw(st.booleans()) and inside:
            gone = data.draw(st.sampled_from(sorted(inside)))
            rows.remove(gone)
            del inside[gone]
        if data.draw(st.booleans()):
            for prompt in (rows.next_batch(float(index)) or Batch(())).prompts:
                del inside[prompt.index]
        assert (rows.tokens, len(rows)) == (sum(inside.values()), len(inside))
