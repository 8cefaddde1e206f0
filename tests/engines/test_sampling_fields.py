"""Sampling fields of vLLM and OpenAI: the same tokens on every engine, and as defined."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from subjects import Subject, alone, converted, ctranslate2, in_batches, packed, transformers
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from packhorse.data import Batch, EngineOutput, Failure, Prompt, SamplingParams
from packhorse.engine_protocol import Engine
from packhorse.engines.common.logits import LogitsProcessor
from packhorse.engines.common.sampling import sample

END = 2
FIELDS: dict[str, dict[str, Any]] = {
    "presence": {"presence_penalty": 0.9},
    "frequency": {"frequency_penalty": 0.6},
    "negative": {"frequency_penalty": -0.4, "presence_penalty": -0.2},
    "repetition": {"repetition_penalty": 1.4},
    "less than one": {"repetition_penalty": 0.8},
    "bias": {"logit_bias": {5: 2.5, 9: -100.0, 60: 1.0}},
    "suppressed": {"suppress_tokens": [*range(40, 160)]},
    "words": {"bad_words": ["x"], "bad_word_ids": [[7], [5, 60], [60, 5, 9]]},
    "least": {"min_tokens": 9, "stop_token_ids": [*range(100, 220)]},
    "no end": {"ignore_eos": True},
    "stops": {"stop_token_ids": [*range(100, 300, 3)]},
    "min_p": {"min_p": 0.2, "temperature": 0.9, "seed": 5},
    "all": {
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "logit_bias": {5: 1.0},
        "suppress_tokens": [11],
        "bad_words": ["x"],
        "bad_word_ids": [[5, 60]],
        "min_tokens": 4,
        "min_p": 0.05,
        "temperature": 1.2,
        "top_k": 40,
        "top_p": 0.9,
        "seed": 3,
    },
}
ON_CTRANSLATE2 = ("suppressed", "least", "no end", "stops")


@pytest.fixture(scope="module")
def model(built: dict[str, Path]) -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(built["llama"])
    return loaded.eval()


@pytest.fixture(scope="module", params=["transformers", "packed", "ctranslate2"])
def subject(
    request: pytest.FixtureRequest,
    built: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Subject:
    folder = built["llama"]
    if request.param == "transformers":
        return transformers("transformers", folder, end_ids=(END,))
    if request.param == "packed":
        return packed("packed", folder, (END,), "float32")
    made = converted(folder, tmp_path_factory.mktemp("ct2") / "llama")
    return ctranslate2("ctranslate2", made, end_ids=(END,))


@pytest.fixture(scope="module")
def engine(subject: Subject) -> Iterator[Engine]:
    engine = subject.make()
    yield engine
    engine.close()


def expected(model: Any, prompt: Prompt) -> list[int]:
    """The row's tokens by a plain loop over whole forward passes, with the shared rules."""
    decoding, found = prompt.decoding, list[int]()
    change = LogitsProcessor(decoding, prompt.token_ids, (END,))
    chance = random.Random(decoding.seed)
    while len(found) < decoding.max_new_tokens:
        with torch.inference_mode():
            ids = torch.tensor([[*prompt.token_ids, *found]])
            logits = model(input_ids=ids).logits[0, -1].float()
        logits = logits.clone()
        change(logits, found)
        token = int(logits.argmax())
        if not decoding.greedy:
            token = int(
                sample(
                    logits[None],
                    temperature=[decoding.temperature],
                    top_k=[decoding.top_k],
                    top_p=[decoding.top_p],
                    min_p=[decoding.min_p],
                    uniform=[chance.random()],
                )
            )
        if token in decoding.stop_token_ids or (token == END and not decoding.ignore_eos):
            break
        found.append(token)
    return found


def results(engine: Engine, prompts: list[Prompt], size: int) -> dict[int, EngineOutput | Failure]:
    return {each.index: each for each in engine.run(in_batches(prompts, size))}


@pytest.mark.parametrize("name", FIELDS)
def test_rows_get_the_tokens_of_the_definition_in_any_batch(
    subject: Subject, engine: Engine, model: Any, name: str
) -> None:
    fields = FIELDS[name]
    if subject.name == "ctranslate2" and name not in ON_CTRANSLATE2:
        pytest.skip("another engine's")
    prompts = subject.prompts(6, seed=4, max_new_tokens=20)
    with_fields = [
        replace(prompt, decoding=replace(prompt.decoding, **fields)) if number % 3 else prompt
        for number, prompt in enumerate(prompts)
    ]
    wanted = {prompt.index: tuple(expected(model, prompt)) for prompt in with_fields}
    for size in (1, 6):
        found = results(engine, with_fields, size)
        assert {index: each.token_ids for index, each in found.items()} == wanted  # type: ignore[union-attr]
    plain = {prompt.index: tuple(expected(model, prompt)) for prompt in prompts}
    if name not in ("no end",):
        assert plain != wanted


def test_changes_are_those_of_transformers(model: Any) -> None:
    """Where the formulas are the same; transformers' words and biases look at the prompt too."""
    torch.manual_seed(1)
    logits = torch.randn(300) * 3
    ids = [7, 8, 9, 20, 20, 21]
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"repetition_penalty": 1.3}, RepetitionPenaltyLogitsProcessor(1.3)),
        ({"repetition_penalty": 0.7}, RepetitionPenaltyLogitsProcessor(0.7)),
        ({"suppress_tokens": (3, 5)}, SuppressTokensLogitsProcessor([3, 5])),
        ({"min_tokens": 5}, MinNewTokensLengthLogitsProcessor(3, 5, [END])),
        ({"min_tokens": 3}, MinNewTokensLengthLogitsProcessor(3, 3, [END])),
        (
            {"bad_words": ("x",), "bad_word_ids": ((5,), (20, 21, 22), (20, 23), (21, 24))},
            NoBadWordsLogitsProcessor([[5], [20, 21, 22], [20, 23], [21, 24]], eos_token_id=END),
        ),
        (
            {"logit_bias": {5: 1.5, 6: -2.0}},
            SequenceBiasLogitsProcessor([[[5], 1.5], [[6], -2.0]]),
        ),
    ]
    for fields, theirs in cases:
        ours = logits.clone()
        LogitsProcessor(SamplingParams(**fields), ids[:3], (END,))(ours, ids[3:])
        wanted = LogitsProcessorList([theirs])(torch.LongTensor([ids]), logits[None].clone())[0]
        assert torch.equal(ours, wanted), fields


def test_min_p_keeps_the_tokens_that_transformers_keeps() -> None:
    torch.manual_seed(2)
    logits = torch.randn(200)
    kept = MinPLogitsWarper(0.3)(torch.LongTensor([[0]]), logits[None].double())[0].isfinite()
    draws = {
        int(
            sample(
                logits[None],
                temperature=[1.0],
                top_k=[0],
                top_p=[1.0],
                min_p=[0.3],
                uniform=[u / 500],
            )
        )
        for u in range(500)
    }
    assert draws == set(kept.nonzero().flatten().tolist())


def test_penalties_by_hand() -> None:
    """x - f * count - p for generated tokens, after r for those of prompt and text."""
    logits = torch.tensor([2.0, -2.0, 1.0, 4.0])
    params = SamplingParams(repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    LogitsProcessor(params, [0, 1], ())(logits, [1, 1, 3])
    assert logits.tolist() == [1.0, -4.0 - 2 * 0.5 - 0.25, 1.0, 2.0 - 0.5 - 0.25]
    bias = torch.tensor([1.0, 1.0])
    LogitsProcessor(SamplingParams(repetition_penalty=2.0, logit_bias=((0, 3.0),)), [0], ())(
        bias, []
    )
    assert bias.tolist() == [2.0, 1.0]  # the bias comes before the penalty, as in vLLM


def test_no_token_is_generated_and_prompts_are_read(
    subject: Subject, engine: Engine, model: Any
) -> None:
    prompts = [
        replace(prompt, decoding=SamplingParams(max_new_tokens=limit, prompt_log_probs=count))
        for prompt, limit, count in zip(
            subject.prompts(6, seed=8), (0, 0, 3, 3, 0, 2), (None, 0, 2, None, 3, 1), strict=True
        )
    ]
    for size in (1, 6):
        found = results(engine, prompts, size)
        for prompt in prompts:
            result = found[prompt.index]
            assert isinstance(result, EngineOutput), result
            assert len(result.token_ids) <= prompt.decoding.max_new_tokens
            _check_prompt(model, prompt, result)


def _check_prompt(model: Any, prompt: Prompt, result: EngineOutput) -> None:
    count = prompt.decoding.prompt_log_probs
    if count is None:
        assert result.prompt_log_probs is None
        return
    assert result.prompt_log_probs is not None
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt.token_ids])).logits[0].double()
    wanted = logits.log_softmax(-1)
    assert [each.token_id for each in result.prompt_log_probs] == list(prompt.token_ids[1:])
    for place, each in enumerate(result.prompt_log_probs):
        values = wanted[place]
        assert each.log_prob == pytest.approx(float(values[each.token_id]), abs=1e-4)
        top = values.topk(count)
        assert [value for _, value in each.alternatives] == pytest.approx(
            top.values.tolist(), abs=1e-4
        )
        assert each.rank == 1 + int((values > values[each.token_id] + 1e-9).sum())


def test_log_probabilities_are_those_before_changes(subject: Subject, engine: Engine) -> None:
    if subject.name == "ctranslate2":
        pytest.skip("it refuses both together")
    (prompt,) = subject.prompts(1, seed=5, max_new_tokens=1, top_log_probs=3)
    plain = results(engine, [prompt], 1)[0]
    assert isinstance(plain, EngineOutput)
    assert plain.log_probs
    first = plain.log_probs[0].token_id
    decoding = replace(prompt.decoding, suppress_tokens=(first,))
    other = results(engine, [replace(prompt, decoding=decoding)], 1)[0]
    assert isinstance(other, EngineOutput)
    assert other.log_probs
    assert other.token_ids != plain.token_ids
    assert other.log_probs[0].alternatives == plain.log_probs[0].alternatives


@pytest.mark.parametrize("name", ["logit_bias", "suppress_tokens", "stop_token_ids"])
def test_foreign_token_ids_fail_their_row(subject: Subject, engine: Engine, name: str) -> None:
    value: Any = {5000: 1.0} if name == "logit_bias" else [5000]
    good, bad = subject.prompts(2, max_new_tokens=2)
    bad = replace(bad, decoding=replace(bad.decoding, **{name: value}))
    found = results(engine, [good, bad], 2)
    assert isinstance(found[0], EngineOutput)
    failure = found[1]
    assert isinstance(failure, Failure)
    assert failure.code == "bad_option"
    assert name in failure.message
    assert "5000" in failure.message


def test_a_row_without_a_token_left_says_so(subject: Subject, engine: Engine) -> None:
    if subject.name == "ctranslate2":
        pytest.skip("its excluded tokens keep a finite logit")
    (prompt,) = subject.prompts(1, max_new_tokens=2, suppress_tokens=[*range(300)])
    found = results(engine, [prompt], 1)[0]
    assert isinstance(found, Failure)
    assert found.code == "engine_error"
    assert "suppress_tokens" in found.message


def test_what_ctranslate2_does_differently_is_refused(subject: Subject, engine: Engine) -> None:
    if subject.name != "ctranslate2":
        pytest.skip("another engine's")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"bad_words": ("x",), "bad_word_ids": ((5, 6),)}, "bad_words"),
        ({"suppress_tokens": (5,), "top_log_probs": 1}, "log-probabilities"),
        ({"min_tokens": 2, "ignore_eos": True}, "ignore_eos"),
    ]
    for fields, word in cases:
        (prompt,) = subject.prompts(1, max_new_tokens=4, **fields)
        found = results(engine, [prompt], 1)[0]
        assert isinstance(found, Failure)
        assert found.code == "unsupported_option"
        assert word in found.message
        assert "transformers or packed" in found.message


def test_open_runs_take_turns(subject: Subject, engine: Engine) -> None:
    """Two iterators of one engine, read in turns, give what each gives alone."""
    one, other = (subject.prompts(9, seed, max_new_tokens=12) for seed in (11, 12))
    wanted = [alone(engine, each) for each in (one, other)]
    runs = [engine.run(in_batches(each, 4)) for each in (one, other)]
    found: list[dict[int, Any]] = [{}, {}]
    while sum(map(len, found)) < 18:
        for run, results_of in zip(runs, found, strict=True):
            if (result := next(run, None)) is not None:
                results_of[result.index] = result
    assert [{i: each.token_ids for i, each in some.items()} for some in found] == wanted
    assert all(next(run, None) is None for run in runs)


def test_a_run_that_is_closed_leaves_others_alone(subject: Subject, engine: Engine) -> None:
    prompts = subject.prompts(9, 13, max_new_tokens=12)
    wanted = alone(engine, prompts)
    kept, closed = (engine.run(in_batches(prompts, 3)) for _ in range(2))
    first = next(kept)
    next(closed)
    closed.close()  # type: ignore[attr-defined]
    found = {each.index: each.token_ids for each in [first, *kept]}  # type: ignore[union-attr]
    assert found == wanted


def test_a_callback_that_raises_ends_its_own_run(subject: Subject, engine: Engine) -> None:
    prompts = subject.prompts(6, 14, max_new_tokens=12)
    wanted = alone(engine, prompts)

    def fails(row: int, token_id: int) -> bool:
        raise ZeroDivisionError

    kept = engine.run(in_batches(prompts, 3))
    first = next(kept)
    with pytest.raises(ZeroDivisionError):
        list(engine.run(in_batches(prompts, 3), fails))
    found = {each.index: each.token_ids for each in [first, *kept]}  # type: ignore[union-attr]
    assert found == wanted


def test_threads_run_at_the_same_time(subject: Subject, engine: Engine) -> None:
    jobs = [subject.prompts(8, seed, max_new_tokens=10) for seed in range(4)]
    wanted = [alone(engine, prompts) for prompts in jobs]
    found: list[Any] = [None] * len(jobs)

    def work(number: int) -> None:
        outputs = engine.run(in_batches(jobs[number], 3))
        found[number] = {each.index: each.token_ids for each in outputs}  # type: ignore[union-attr]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == wanted


def test_rows_share_prefixes_and_batches_with_others(
    subject: Subject, engine: Engine, model: Any
) -> None:
    prefix = tuple(range(30, 62))
    fields = FIELDS["stops" if subject.name == "ctranslate2" else "all"]
    prompts = []
    for index in range(6):
        decoding = SamplingParams(max_new_tokens=10, **(fields if index % 2 else {}))
        if index == 3 and subject.name != "ctranslate2":
            decoding = replace(decoding, prompt_log_probs=1)
        prompts.append(Prompt(index, (*prefix, 70 + index, 90), decoding))
    wanted = {prompt.index: tuple(expected(model, prompt)) for prompt in prompts}
    found = engine.run(iter([Batch(tuple(prompts), len(prefix))]))
    outputs = {each.index: each for each in found}
    assert {index: each.token_ids for index, each in outputs.items()} == wanted  # type: ignore[union-attr]
    if subject.name != "ctranslate2":
        third = outputs[3]
        assert isinstance(third, EngineOutput)
        _check_prompt(model, prompts[3], third)
