"""How a batch that fails costs none of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.data import EngineOutput, Failure, Prompt, SamplingParams
from packhorse.engine_protocol import TokenCallback
from packhorse.engines.common.rows import CallbackError, Result, Row, answer, diagnose, refuse

END = 9


def rows(count: int, max_new_tokens: int = 3) -> list[Row]:
    return [Row(Prompt(index, (1, 2), SamplingParams(max_new_tokens))) for index in range(count)]


def decoding(
    is_broken: Callable[[list[Row]], BaseException | None], tried: list[list[int]]
) -> Callable[[list[Row]], Iterator[Result]]:
    """An engine that counts up, one token a step, and asks `is_broken` before each step."""

    def attempt(group: list[Row]) -> Iterator[Result]:
        tried.append([row.prompt.index for row in group])
        while group:
            if error := is_broken(group):
                raise error
            for row in group:
                if result := row.take(10 + len(row.token_ids), (END,), None):
                    yield result
            group = [row for row in group if not row.answered]

    return attempt


def test_a_batch_that_works_is_tried_once() -> None:
    tried: list[list[int]] = []
    results = list(answer(rows(4), decoding(lambda group: None, tried)))
    assert tried == [[0, 1, 2, 3]]
    assert [result.index for result in results] == [0, 1, 2, 3]


def test_a_batch_that_is_too_large_is_halved_until_it_fits() -> None:
    tried: list[list[int]] = []
    error = MemoryError()
    results = list(answer(rows(7), decoding(lambda g: error if len(g) > 2 else None, tried)))
    assert tried == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2], [0], [1, 2], [3, 4, 5, 6], [3, 4], [5, 6]]
    assert all(isinstance(result, EngineOutput) for result in results)


def test_rows_go_on_after_their_last_token() -> None:
    tried: list[list[int]] = []
    broken = iter([None, None, RuntimeError("once")])
    results = list(answer(rows(2, 5), decoding(lambda group: next(broken, None), tried)))
    assert tried == [[0, 1], [0], [1]]
    for result in results:
        assert isinstance(result, EngineOutput)
        assert result.token_ids == (10, 11, 12, 13, 14)


def test_finished_rows_are_not_run_again() -> None:
    group = rows(3)
    group[0] = Row(Prompt(0, (1,), SamplingParams(1)))
    tried: list[list[int]] = []
    broken = iter([None, RuntimeError("second step")])
    list(answer(group, decoding(lambda group: next(broken, None), tried)))
    assert tried == [[0, 1, 2], [1], [2]]


@given(st.integers(1, 20), st.sets(st.integers(0, 19)))
def test_exactly_the_broken_rows_fail(count: int, broken: set[int]) -> None:
    def is_broken(group: list[Row]) -> Exception | None:
        is_hit = any(row.prompt.index in broken for row in group)
        return RuntimeError("broken") if is_hit else None

    results = {result.index: result for result in answer(rows(count), decoding(is_broken, []))}
    failed = {index for index, result in results.items() if isinstance(result, Failure)}
    assert sorted(results) == list(range(count))
    assert failed == broken & set(range(count))


def test_a_row_that_the_engine_forgets_is_a_failure() -> None:
    results = list(answer(rows(3), lambda group: ()))
    assert [result.code for result in results if isinstance(result, Failure)] == [
        "engine_error"
    ] * 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupt_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)):
        list(answer(rows(3), decoding(lambda group: error, [])))


def test_what_a_watch_raised_passes_through_unwrapped() -> None:
    with pytest.raises(KeyError, match="mine"):
        list(answer(rows(3), decoding(lambda group: CallbackError(KeyError("mine")), [])))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (MemoryError("std::bad_alloc"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (RuntimeError("CUDA failed with error out of memory"), "out_of_memory"),
        (RuntimeError("No position encodings are defined"), "engine_error"),
        (IndexError(""), "engine_error"),
    ],
)
def test_what_an_error_is_called(error: Exception, code: str) -> None:
    found, message = diagnose(error)
    assert found == code
    assert type(error).__name__ in message
    assert "\n" not in message


def watch_two(row: int, token_id: int) -> bool:
    return token_id == 2


@pytest.mark.parametrize(
    ("generated", "on_token", "token_ids", "reason"),
    [
        ([5, 6, 7], None, (5, 6, 7), "length"),
        ([5, END], None, (5,), "stop"),
        ([END], None, (), "stop"),
        ([5, 2], watch_two, (5, 2), "stop"),
        ([5, 6, 2], watch_two, (5, 6, 2), "stop"),
        ([5, 6, 7], watch_two, (5, 6, 7), "length"),
    ],
)
def test_why_a_row_ends(
    generated: list[int],
    on_token: TokenCallback | None,
    token_ids: tuple[int, ...],
    reason: str,
) -> None:
    (row,) = rows(1)
    *before, last = [row.take(token, (END,), on_token) for token in generated]
    assert before == [None] * len(before)
    assert last is not None
    assert (last.token_ids, last.finish_reason) == (token_ids, reason)
    assert row.answered


@pytest.mark.parametrize(
    ("token_ids", "limit", "code"),
    [
        ((1,), 9, None),
        ((1,) * 9, 1, None),
        ((1,) * 9, 2, "prompt_too_long"),
        ((1,), 10, "prompt_too_long"),
        ((1,), 1000, "prompt_too_long"),
        ((), 1, "empty_prompt"),
        ((1, 20), 1, "engine_error"),
        ((1, -1), 1, "engine_error"),
    ],
)
def test_what_no_engine_can_run(token_ids: tuple[int, ...], limit: int, code: str | None) -> None:
    failure = refuse(
        Row(Prompt(0, token_ids, SamplingParams(limit))), max_context=10, vocab_size=20
    )
    assert (failure.code if failure else None) == code
