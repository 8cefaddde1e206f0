"""What every engine keeps: one suite for all of them."""

from __future__ import annotations

import inspect
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from subjects import (
    Subject,
    alone,
    codes,
    converted,
    ctranslate2,
    fake,
    in_batches,
    packed,
    run,
    tokens,
    transformers,
    with_decoding,
)

from packhorse.data import Batch, EngineOutput, Failure, Prompt, SamplingParams, TokenLogProbs
from packhorse.engine_protocol import Engine
from packhorse.errors import EngineError

TINY = (
    "fake padded",
    "fake min-prefix-prefill",
    "fake packed",
    "transformers llama",
    "transformers gpt2",
    "ctranslate2 llama",
    "ctranslate2 gpt2",
    "packed llama float32",
    "packed gpt2 float32",
    "packed llama int8",
    "packed gpt2 int8",
)
LAW = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)


@pytest.fixture(scope="session")
def subjects(
    built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Subject]:
    root = tmp_path_factory.mktemp("ctranslate2")
    llama, gpt2 = built["llama"], built["gpt2"]
    every = [
        fake("fake padded"),
        fake(
            "fake min-prefix-prefill",
            cost_rule="min-prefix-prefill",
            workers=2,
            mixed_decoding=False,
        ),
        fake("fake packed", cost_rule="packed", workers=4),
        transformers("transformers llama", llama, end_ids=(2,)),
        transformers("transformers gpt2", gpt2, end_ids=(0,)),
        ctranslate2("ctranslate2 llama", converted(llama, root / "llama"), end_ids=(2,)),
        ctranslate2("ctranslate2 gpt2", converted(gpt2, root / "gpt2"), end_ids=(0,)),
        packed("packed llama float32", llama, (2,), "float32"),
        packed("packed gpt2 float32", gpt2, (0,), "float32"),
        packed("packed llama int8", llama, (2,), "int8"),
        packed("packed gpt2 int8", gpt2, (0,), "int8"),
    ]
    return {subject.name: subject for subject in every}


@pytest.fixture(scope="session", params=TINY)
def subject(request: pytest.FixtureRequest, subjects: dict[str, Subject]) -> Subject:
    return subjects[request.param]


@pytest.fixture(scope="session")
def engine(subject: Subject) -> Iterator[Engine]:
    engine = subject.make()
    yield engine
    engine.close()


def engine_tests() -> dict[str, Callable[..., None]]:
    """The tests that need the fixtures `subject` and `engine` only: for engines of other packages,
    see docs/how-to/add-an-engine.md."""
    return {
        name: test
        for name, test in globals().items()
        if name.startswith("test_") and "subjects" not in inspect.signature(test).parameters
    }


def test_traits_say_what_a_planner_needs(subject: Subject, engine: Engine) -> None:
    capabilities = engine.capabilities
    assert capabilities.cost_rule in ("padded", "min-prefix-prefill", "packed")
    assert min(capabilities.workers, capabilities.threads, capabilities.max_context) >= 1
    assert capabilities.cache_bytes_per_token > 0
    assert capabilities.compute_type in subject.name or capabilities.compute_type == "float32"
    assert capabilities.device == "cpu"


@pytest.mark.slow
@LAW
@given(seed=st.integers(0, 99), rows=st.integers(1, 30), batch=st.integers(1, 11))
def test_every_row_is_answered_once(
    subject: Subject, engine: Engine, seed: int, rows: int, batch: int
) -> None:
    prompts = subject.prompts(rows, seed)
    results = tokens(run(engine, prompts, batch))
    assert sorted(results) == list(range(rows))
    for prompt in prompts:
        assert len(results[prompt.index]) <= prompt.decoding.max_new_tokens


@pytest.mark.slow
@LAW
@given(seed=st.integers(0, 99), batch=st.integers(2, 12))
def test_a_row_alone_equals_the_row_in_any_batch_and_order(
    subject: Subject, engine: Engine, seed: int, batch: int
) -> None:
    prompts = subject.prompts(16, seed)
    expected = alone(engine, prompts)
    random.Random(seed).shuffle(prompts)
    assert tokens(run(engine, prompts, batch)) == expected
    prompts.sort(key=lambda prompt: -len(prompt.token_ids))
    assert tokens(run(engine, prompts, batch)) == expected


@pytest.mark.slow
@LAW
@given(seed=st.integers(0, 99), shared=st.integers(1, 40), rows=st.integers(1, 9))
def test_a_shared_prefix_changes_no_token(
    subject: Subject, engine: Engine, seed: int, shared: int, rows: int
) -> None:
    """Twice the same batch: the second time an engine may remember the prefix."""
    own = subject.prompts(rows, seed)
    prefix = (own[0].token_ids * 40)[:shared]
    prompts = [replace(prompt, token_ids=prefix + prompt.token_ids) for prompt in own]
    expected = alone(engine, prompts)
    for _ in range(2):
        results = engine.run(iter([Batch(tuple(prompts), shared)]))
        assert tokens({result.index: result for result in results}) == expected


def test_length_is_the_reason_of_a_row_that_reaches_its_limit(
    subject: Subject, engine: Engine
) -> None:
    for result in run(engine, subject.prompts(24), 5).values():
        assert isinstance(result, EngineOutput)
        is_full = len(result.token_ids) == subject.prompts(24)[result.index].decoding.max_new_tokens
        assert is_full or result.finish_reason == "stop"
        assert not set(result.token_ids) & set(subject.end_ids)


def test_a_smaller_limit_gives_the_beginning_of_the_same_tokens(
    subject: Subject, engine: Engine
) -> None:
    long = subject.prompts(12, max_new_tokens=20)
    whole = alone(engine, long)
    short = [with_decoding(prompt, max_new_tokens=1 + prompt.index % 7) for prompt in long]
    results = run(engine, short, 12)
    for prompt in short:
        limit, result = prompt.decoding.max_new_tokens, results[prompt.index]
        assert isinstance(result, EngineOutput)
        assert result.token_ids == whole[prompt.index][:limit]
        assert result.finish_reason == "length" or len(result.token_ids) < limit


def test_an_end_token_ends_its_row_and_is_not_part_of_it(subject: Subject) -> None:
    if subject.name.startswith("fake"):
        pytest.skip("its end token is its own")
    with_all = subject.make(end_ids=())
    prompts = subject.prompts(8, max_new_tokens=16)
    whole = alone(with_all, prompts)
    with_all.close()
    end = whole[3][5]
    engine = subject.make(end_ids=(end, 299))
    results = run(engine, prompts, 8)
    engine.close()
    for index, everything in whole.items():
        result = results[index]
        assert isinstance(result, EngineOutput)
        ends = [place for place, token in enumerate(everything) if token in (end, 299)]
        assert result.token_ids == everything[: ends[0] if ends else None]
        assert result.finish_reason == ("stop" if ends else "length")


@pytest.mark.slow
def test_a_prompt_may_fill_the_context_but_not_more(subject: Subject, engine: Engine) -> None:
    lengths = {0: (255, 1), 1: (250, 6), 2: (256, 1), 3: (250, 7), 4: (3, 253), 5: (10, 5)}
    prompts = [
        Prompt(index, tuple(subject.ids[5 + index] for _ in range(length)), SamplingParams(limit))
        for index, (length, limit) in lengths.items()
    ]
    failed = {2: "prompt_too_long", 3: "prompt_too_long"}
    results = run(engine, prompts, 6)
    assert codes(results) == {index: failed.get(index, "") for index in lengths}
    fitting = [prompt for prompt in prompts if prompt.index not in failed]
    completed = {index: result for index, result in results.items() if index not in failed}
    assert tokens(completed) == alone(engine, fitting)


def test_a_row_that_cannot_run_costs_no_other(subject: Subject, engine: Engine) -> None:
    prompts = subject.prompts(6)
    expected = alone(engine, prompts)
    bad = [Prompt(6, (), SamplingParams(4)), Prompt(7, (5, 1_000_000), SamplingParams(4))]
    results = run(engine, [bad[0], *prompts, bad[1]], 8)
    assert codes(results) == dict.fromkeys(range(6), "") | {6: "empty_prompt", 7: "engine_error"}
    assert tokens({index: results[index] for index in range(6)}) == expected
    assert codes(run(engine, bad, 2)) == {6: "empty_prompt", 7: "engine_error"}


def test_nothing_to_do(engine: Engine) -> None:
    assert list(engine.run(iter([]))) == []
    assert list(engine.run(iter([Batch(()), Batch(())]))) == []


def test_timings_are_in_order(subject: Subject, engine: Engine) -> None:
    for result in engine.run(in_batches(subject.prompts(9), 4)):
        assert isinstance(result, EngineOutput)
        timing = result.timing
        assert timing.first_token is not None
        assert timing.submitted <= timing.first_token <= timing.finished


def rows_ahead(engine: Engine, batch: int) -> int:
    """Rows an engine may have pulled beyond those it answered, in batches of `batch`."""
    if under_way := engine.capabilities.max_num_seqs:
        return under_way + under_way // 4 + 2 * batch
    return (engine.capabilities.workers + 2) * batch + batch - 1


@pytest.mark.slow
def test_batches_are_pulled_as_there_is_room(subject: Subject, engine: Engine) -> None:
    pulled = answered = 0

    def batches() -> Iterator[Batch]:
        nonlocal pulled
        for batch in in_batches(subject.prompts(40), 2):
            pulled += 1
            yield batch

    for _ in engine.run(batches()):
        answered += 1
        assert 2 * pulled - answered <= rows_ahead(engine, 2)
    assert (pulled, answered) == (20, 40)


def test_a_source_with_nothing_for_now_holds_back_no_result(
    subject: Subject, engine: Engine
) -> None:
    """Batches without prompts, until the row before has its result."""
    prompts = subject.prompts(3, seed=5)
    found: set[int] = set()
    deadline = time.monotonic() + 60

    def source() -> Iterator[Batch]:
        for prompt in prompts:
            yield Batch((prompt,))
            while prompt.index not in found:
                assert time.monotonic() < deadline
                time.sleep(0.001)
                yield Batch(())

    for result in engine.run(source()):
        found.add(result.index)
    assert found == {0, 1, 2}


def test_watch_sees_each_token_once_in_order(subject: Subject, engine: Engine) -> None:
    seen: dict[int, list[int]] = {}

    def on_token(row: int, token_id: int) -> bool:
        seen.setdefault(row, []).append(token_id)
        return False

    results = tokens(run(engine, subject.prompts(10), 4, on_token))
    assert {row: tuple(ids) for row, ids in seen.items()} == {
        row: ids for row, ids in results.items() if ids
    }


def test_watch_ends_a_row_and_only_that(subject: Subject, engine: Engine) -> None:
    prompts = subject.prompts(8, max_new_tokens=12)
    whole = alone(engine, prompts)
    counts = dict.fromkeys(range(8), 0)

    def on_token(row: int, token_id: int) -> bool:
        counts[row] += 1
        return row == 5 and counts[row] == 3

    results = run(engine, prompts, 4, on_token)
    ended = results[5]
    assert isinstance(ended, EngineOutput)
    assert (ended.token_ids, ended.finish_reason) == (whole[5][:3], "stop")
    assert tokens(results) == {**whole, 5: whole[5][:3]}


def test_what_watch_raises_reaches_the_caller(subject: Subject, engine: Engine) -> None:
    def on_token(row: int, token_id: int) -> bool:
        raise LookupError("the caller's own")

    with pytest.raises(LookupError, match="the caller's own"):
        run(engine, subject.prompts(8), 3, on_token)
    assert len(run(engine, subject.prompts(3), 3)) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_the_batches_raise_reaches_the_caller(
    subject: Subject, engine: Engine, error: type[BaseException]
) -> None:
    def batches() -> Iterator[Batch]:
        yield from in_batches(subject.prompts(4), 2)
        raise error

    with pytest.raises(error):
        list(engine.run(batches()))
    assert len(run(engine, subject.prompts(3), 3)) == 3


def test_closing_the_iterator_cancels(subject: Subject, engine: Engine) -> None:
    generated = pulled = 0

    def batches() -> Iterator[Batch]:
        nonlocal pulled
        for batch in in_batches(subject.prompts(200, max_new_tokens=150), 4):
            pulled += 1
            yield batch

    def on_token(row: int, token_id: int) -> bool:
        nonlocal generated
        generated += 1
        return row == 0

    results = engine.run(batches(), on_token)
    assert isinstance(next(results), EngineOutput)
    results.close()  # type: ignore[attr-defined]
    stopped_at = generated
    assert 4 * pulled <= rows_ahead(engine, 4)
    assert len(run(engine, subject.prompts(3), 3)) == 3
    assert generated == stopped_at


def test_close_may_be_repeated_and_ends_the_engine(subject: Subject) -> None:
    engine = subject.make()
    unfinished = engine.run(in_batches(subject.prompts(9), 3))
    next(unfinished)
    engine.close()
    engine.close()
    unfinished.close()  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="closed"):
        list(engine.run(in_batches(subject.prompts(1), 1)))


def sampled(subject: Subject, rows: int, **options: Any) -> list[Prompt]:
    """Rows that sample, each with its own seed."""
    chosen = {"max_new_tokens": 12, "temperature": 1.0, **options}
    return [
        with_decoding(prompt, **{"seed": prompt.index, **chosen})
        for prompt in subject.prompts(rows)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"top_k": 7}, {"top_p": 0.6}, {"top_k": 50, "top_p": 0.9}],
    ids=str,
)
def test_a_seed_repeats_a_row_in_any_batch(
    subject: Subject, engine: Engine, options: dict[str, Any]
) -> None:
    prompts = sampled(subject, 10, **options)
    expected = alone(engine, prompts)
    assert tokens(run(engine, list(reversed(prompts)), 4)) == expected
    assert tokens(run(engine, prompts, 10)) == expected


def test_seeds_differ(subject: Subject, engine: Engine) -> None:
    (prompt,) = sampled(subject, 1)
    seeds = (0, 1, 2, 41, 2**32 - 1, 2**63 - 1)
    rows = [
        Prompt(index, prompt.token_ids, with_decoding(prompt, seed=seed).decoding)
        for index, seed in enumerate(seeds)
    ]
    assert len(set(tokens(run(engine, rows, 6)).values())) == len(seeds)


def test_without_a_seed_no_two_runs_agree(subject: Subject, engine: Engine) -> None:
    prompts = sampled(subject, 4, seed=None, max_new_tokens=24)
    assert tokens(run(engine, prompts, 4)) != tokens(run(engine, prompts, 4))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"top_k": 1}, {"temperature": 1e-6}, {"temperature": 1e-40}])
def test_sampling_that_leaves_no_choice_is_greedy(
    subject: Subject, engine: Engine, options: dict[str, Any]
) -> None:
    greedy = subject.prompts(6, max_new_tokens=12)
    prompts = sampled(subject, 6, **options)
    assert tokens(run(engine, prompts, 3)) == alone(engine, greedy)


def test_rows_of_one_batch_may_decode_differently(subject: Subject, engine: Engine) -> None:
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"temperature": 0.8, "seed": 1},
        {"temperature": 1.2, "seed": 2, "top_k": 5},
        {"temperature": 0.9, "seed": 3, "top_p": 0.5},
    )
    prompts = [with_decoding(prompt, **ways[prompt.index % 4]) for prompt in subject.prompts(12)]
    assert tokens(run(engine, prompts, 12)) == alone(engine, prompts)


def log_probs(results: dict[int, EngineOutput | Failure]) -> dict[int, tuple[TokenLogProbs, ...]]:
    found = {}
    for index, result in results.items():
        assert isinstance(result, EngineOutput)
        assert result.log_probs is not None
        assert tuple(each.token_id for each in result.log_probs) == result.token_ids
        found[index] = result.log_probs
    return found


def values(each: TokenLogProbs) -> list[float]:
    return [each.log_prob, *(value for _, value in each.alternatives)]


def is_tie(each: TokenLogProbs) -> bool:
    """Whether rounding may decide which of the two likeliest is chosen."""
    (_, best), (_, second), *_ = each.alternatives
    return best - second < 1e-4


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_log_probs_are_given_where_they_are_asked_for(
    subject: Subject, engine: Engine, count: int
) -> None:
    assert engine.capabilities.gives_log_probs
    plain = subject.prompts(9, seed=2)
    asking = [with_decoding(prompt, top_log_probs=count) for prompt in plain]
    expected = alone(engine, plain)
    mixed = [*plain[:4], *asking[4:]]
    random.Random(count).shuffle(mixed)
    results = run(engine, mixed, 9)
    assert tokens(results) == expected
    for index in range(4):
        result = results.pop(index)
        assert isinstance(result, EngineOutput)
        assert result.log_probs is None
    for row in log_probs(results).values():
        for each in row:
            values = [value for _, value in each.alternatives]
            assert len(dict(each.alternatives)) == len(values) == count
            assert values == sorted(values, reverse=True)
            assert each.log_prob <= 0
            assert sum(map(math.exp, values)) < 1 + 1e-9
            if count:
                assert each.alternatives[0] == (each.token_id, each.log_prob)


@pytest.mark.slow
@LAW
@given(seed=st.integers(0, 99), batch=st.integers(2, 12), shared=st.integers(0, 20))
def test_batch_mates_change_no_log_prob(
    subject: Subject, engine: Engine, seed: int, batch: int, shared: int
) -> None:
    prompts = subject.prompts(12, seed, top_log_probs=3)
    prefix = prompts[0].token_ids[:1] * shared
    prompts = [replace(prompt, token_ids=prefix + prompt.token_ids) for prompt in prompts]
    expected = log_probs(
        {prompt.index: result for prompt in prompts for result in run(engine, [prompt], 1).values()}
    )
    random.Random(seed).shuffle(prompts)
    batches = [Batch(each.prompts, shared) for each in in_batches(prompts, batch)]
    found = log_probs({result.index: result for result in engine.run(iter(batches))})
    assert found.keys() == expected.keys()
    for index, row in expected.items():
        for one, other in zip(row, found[index], strict=not any(map(is_tie, row))):
            assert values(other) == pytest.approx(values(one), abs=1e-4)
            if is_tie(one):
                break  # either token may follow, and another text then
            assert other.token_id == one.token_id


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("transformers llama", "llama"),
        ("transformers gpt2", "gpt2"),
        ("ctranslate2 llama", "llama"),
        ("ctranslate2 gpt2", "gpt2"),
        ("packed llama float32", "llama"),
        ("packed gpt2 float32", "gpt2"),
    ],
)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "top_k": 40, "seed": 3}], ids=str)
def test_log_probs_are_those_of_the_models_own_logits(
    subjects: dict[str, Subject],
    built: dict[str, Path],
    name: str,
    model: str,
    sampling: dict[str, Any],
) -> None:
    """Computed anew, the whole row at once, whatever temperature and top_k the row draws with."""
    import torch
    from transformers import AutoModelForCausalLM

    engine = subjects[name].make()
    plain = subjects[name].prompts(6, seed=4, top_log_probs=4)
    prompts = [with_decoding(prompt, **sampling) for prompt in plain]
    found = log_probs(run(engine, prompts, 6))
    engine.close()
    reference = AutoModelForCausalLM.from_pretrained(built[model], dtype="float32")
    for prompt in prompts:
        row = found[prompt.index]
        ids = torch.tensor([[*prompt.token_ids, *(each.token_id for each in row)]])
        with torch.inference_mode():
            whole = reference(ids).logits[0].log_softmax(-1)[len(prompt.token_ids) - 1 : -1]
        for each, values in zip(row, whole, strict=True):
            assert each.log_prob == pytest.approx(values[each.token_id].item(), abs=1e-4)
            best = values.topk(4)
            assert [alternative for _, alternative in each.alternatives] == pytest.approx(
                best.values.tolist(), abs=1e-4
            )
            for token_id, value in each.alternatives:
                assert value == pytest.approx(values[token_id].item(), abs=1e-4)


def test_a_seed_draws_the_same_with_log_probs(subject: Subject, engine: Engine) -> None:
    prompts = sampled(subject, 6)
    asking = [with_decoding(prompt, top_log_probs=2) for prompt in prompts]
    assert tokens(run(engine, asking, 4)) == alone(engine, prompts)


def test_a_watch_is_told_log_probs_before_their_token(subject: Subject, engine: Engine) -> None:
    told: dict[int, list[TokenLogProbs]] = {}
    seen: dict[int, int] = {}

    class Watch:
        def take_log_probs(self, row: int, token: TokenLogProbs) -> None:
            told.setdefault(row, []).append(token)

        def __call__(self, row: int, token_id: int) -> bool:
            seen[row] = seen.get(row, 0) + 1
            if row % 2 == 0:
                assert len(told[row]) == seen[row]
                assert told[row][-1].token_id == token_id
            return seen[row] == 6

    prompts = [
        with_decoding(prompt, top_log_probs=None if prompt.index % 2 else 2)
        for prompt in subject.prompts(8)
    ]
    results = run(engine, prompts, 4, Watch())
    asked = {index: result for index, result in results.items() if index % 2 == 0}
    assert {row: tuple(each) for row, each in told.items()} == {
        row: found for row, found in log_probs(asked).items() if found
    }
    assert told


def broken_rows(subjects: dict[str, Subject], name: str) -> tuple[Engine, list[Prompt]]:
    """An engine and rows of which 2 and 5 fail while they run: learned positions end at 256."""
    subject = subjects[name]
    prompts = subject.prompts(8)
    prompts[2] = Prompt(2, tuple(subject.ids[9] for _ in range(300)), SamplingParams(4))
    prompts[5] = Prompt(5, tuple(subject.ids[8] for _ in range(250)), SamplingParams(20))
    if name.startswith("fake"):
        from packhorse.engines.fake import Faults

        return subject.make(max_context=600, faults=Faults(fail_rows=frozenset({2, 5}))), prompts
    return subject.make(max_context=600), prompts


@pytest.mark.parametrize(
    "name",
    ["fake padded", "fake packed", "transformers gpt2", "ctranslate2 gpt2", "packed gpt2 float32"],
)
def test_a_row_that_fails_while_it_runs_costs_no_other(
    subjects: dict[str, Subject], name: str
) -> None:
    engine, prompts = broken_rows(subjects, name)
    whole = [prompt for prompt in prompts if prompt.index not in (2, 5)]
    expected = alone(engine, whole)
    seen: dict[int, list[int]] = {}

    def on_token(row: int, token_id: int) -> bool:
        seen.setdefault(row, []).append(token_id)
        return False

    results = run(engine, prompts, 8, on_token)
    engine.close()
    for index in (2, 5):
        failure = results.pop(index)
        assert isinstance(failure, Failure)
        assert failure.code == "engine_error"
        seen.pop(index, None)
    assert tokens(results) == expected
    assert {row: tuple(ids) for row, ids in seen.items()} == expected
