"""Equal rows run once, and each gets the outcome."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.batching.sizes import Limits
from packhorse.data import Batch, Completion, EngineOutput, Failure, Prompt, Request, SamplingParams
from packhorse.engine_protocol import TokenCallback
from packhorse.engines.fake import FakeEngine, Faults
from packhorse.inference.deduplication import Duplicates, distinct, is_deterministic
from packhorse.inference.generation import GenerationRun
from packhorse.profiling.run_metrics import Meter
from packhorse.tokenization import ByteCodec, Tokenizer


class Counting(FakeEngine):
    """Engine that records the rows it ran."""

    def run(
        self, batches: Iterator[Batch], on_token: TokenCallback | None = None
    ) -> Iterator[EngineOutput | Failure]:
        self.rows: list[int] = []

        def seen() -> Iterator[Batch]:
            for batch in batches:
                self.rows += [prompt.index for prompt in batch.prompts]
                yield batch

        return super().run(seen(), on_token)


def requests(texts: list[str]) -> list[Request]:
    return [
        Request(index, f"id-{index}", index + 1, text, key=f"key-{index}")
        for index, text in enumerate(texts)
    ]


def generation_run(
    engine: FakeEngine, *, window: int = 100, temperature: float = 0.0, seed: int | None = None
) -> GenerationRun:
    decoding = SamplingParams(max_new_tokens=12, temperature=temperature, seed=seed)
    return GenerationRun(
        engine=engine,
        tokenizer=Tokenizer(ByteCodec(), None, "error"),
        policy="sorted-dynamic",
        limits=Limits(4, 200),
        window_rows=window,
        decoding=decoding,
        meter=Meter(),
        deduplicate=True,
    )


@given(
    st.lists(st.sampled_from("abcd"), max_size=40),
    st.integers(1, 9),
)
def test_every_row_gets_what_it_would_get_alone(texts: list[str], window: int) -> None:
    engine = Counting()
    saving = generation_run(engine, window=window)
    rows = requests(texts)
    found = {outcome.index: outcome for outcome in saving.outcomes(rows)}
    plain = replace(generation_run(Counting(), window=window), deduplicate=False)
    alone = {outcome.index: outcome for outcome in plain.outcomes(rows)}
    assert sorted(found) == list(range(len(texts)))
    for index, outcome in found.items():
        other = alone[index]
        assert isinstance(outcome, Completion)
        assert isinstance(other, Completion)
        assert (outcome.id, outcome.key, outcome.text) == (other.id, other.key, other.text)
    assert saving.meter.rows_deduplicated == len(texts) - len(engine.rows)
    assert saving.meter.rows_completed == len(texts)
    if window >= len(texts):
        assert len(engine.rows) == len(set(texts))


def test_rows_of_later_windows_are_answered_from_memory() -> None:
    engine = Counting()
    outcomes = list(generation_run(engine, window=2).outcomes(requests(["a", "b"] * 4)))
    assert len(outcomes) == 8
    assert len(engine.rows) <= 4


def test_log_probs_are_shared_but_not_remembered() -> None:
    """They need too much memory to be kept for rows that may never come."""
    engine = Counting()
    asking = replace(generation_run(engine, window=2), decoding=SamplingParams(12, top_log_probs=2))
    outcomes = list(asking.outcomes(requests(["a", "a", "b", "b", "a"])))
    told = [each.log_probs for each in outcomes if isinstance(each, Completion)]
    assert len(told) == 5
    assert all(each and len(each) == 12 for each in told)
    assert len(engine.rows) == 3


def test_rows_that_ask_an_engine_that_tells_no_log_probs_are_refused() -> None:
    engine = Counting()
    engine._traits = replace(engine.capabilities, gives_log_probs=False)
    asking = replace(generation_run(engine), decoding=SamplingParams(12, top_log_probs=2))
    (outcome,) = asking.outcomes(requests(["a"]))
    assert isinstance(outcome, Failure)
    assert outcome.code == "unsupported_option"
    assert "the engine fake does not return" in outcome.message
    assert engine.rows == []


def test_a_failure_is_shared_in_its_own_words() -> None:
    engine = Counting(faults=Faults(fail_rows=frozenset({1})))
    found = {one.index: one for one in generation_run(engine).outcomes(requests(["a", "b", "b"]))}
    assert [type(found[index]) for index in range(3)] == [Completion, Failure, Failure]
    failure = found[2]
    assert isinstance(failure, Failure)
    assert (failure.id, failure.line, failure.key) == ("id-2", 3, "key-2")


@pytest.mark.parametrize(
    ("decoding", "expected"),
    [
        (SamplingParams(), True),
        (SamplingParams(temperature=0.7), False),
        (SamplingParams(temperature=0.7, top_k=1), True),
        (SamplingParams(temperature=0.7, seed=3), True),
    ],
)
def test_what_is_deterministic(decoding: SamplingParams, expected: bool) -> None:
    assert is_deterministic(decoding) is expected


def test_rows_that_draw_run_each_for_itself() -> None:
    """With one seed for the job, every row has its own; without a seed nothing is deterministic."""
    for seed in (None, 1):
        engine = Counting()
        list(generation_run(engine, temperature=0.7, seed=seed).outcomes(requests(["a"] * 5)))
        assert len(engine.rows) == 5


def test_settings_are_part_of_equality() -> None:
    engine = Counting()
    rows = requests(["a"] * 3)
    rows[1] = replace(rows[1], options={"max_new_tokens": 3})
    found = {one.index: one for one in generation_run(engine).outcomes(rows)}
    assert len(engine.rows) == 2
    assert isinstance(found[1], Completion)
    assert found[1].completion_tokens == 3


def test_rows_that_wait_are_bounded() -> None:
    """If two rows already wait for a running row or to be taken, further rows run."""
    duplicates = Duplicates(most_waiting=2)
    prompt = Prompt(0, (5, 6), SamplingParams())
    rows = requests(["a"] * 8)
    answer = next(iter(generation_run(Counting()).outcomes(rows[:1])))
    assert [duplicates.join(row, prompt) for row in rows[:4]] == [False, True, True, False]
    assert [one.index for one in duplicates.resolve_duplicates(answer)] == [1, 2]
    assert list(duplicates.resolve_duplicates(replace(answer, index=3))) == []
    assert [duplicates.join(row, prompt) for row in rows[4:]] == [True, True, False, False]
    assert [outcome.index for outcome in duplicates.ready] == [4, 5]


def test_a_file_of_one_prompt_is_not_held_in_memory() -> None:
    engine = Counting()
    taken = 0

    def counted() -> Iterator[Request]:
        nonlocal taken
        for request in requests(["a"] * 400):
            taken += 1
            yield request

    outcomes = generation_run(engine, window=5).outcomes(counted())
    next(outcomes)
    assert taken <= 40
    assert len(list(outcomes)) == 399


def test_stopping_leaves_followers_without_an_outcome() -> None:
    batches = iter([False, True, True])
    stopped = replace(generation_run(Counting()), stopping=lambda: next(batches), policy="single")
    found = [outcome.index for outcome in stopped.outcomes(requests(["a", "b", "a", "b"]))]
    assert found == [0, 2]


def test_distinct_rows_are_those_that_have_to_run() -> None:
    greedy, drawn = (
        SamplingParams(max_new_tokens=4),
        SamplingParams(max_new_tokens=4, temperature=1.0),
    )
    prompts = [
        Prompt(index, ids, decoding)
        for index, (ids, decoding) in enumerate(
            [((1, 2), greedy), ((1, 2), greedy), ((1,), greedy), ((1,), drawn), ((1,), drawn)]
        )
    ]
    assert [prompt.index for prompt in distinct(prompts)] == [0, 2, 3, 4]
