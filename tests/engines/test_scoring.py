"""Continuations scored: every engine against plain forward passes, and what they all keep."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from subjects import Subject, converted, ctranslate2, fake, in_batches, packed, transformers

from packhorse.data import Batch, Failure, Prompt, SamplingParams, Scores
from packhorse.engine_protocol import Engine, Scorer
from packhorse.engines.fake import Faults
from packhorse.errors import EngineError

Ids = tuple[int, ...]
CONTINUATIONS: tuple[Ids, ...] = ((5,), (5, 7), (9, 4, 6), (9, 4, 8, 11), (77, 2))
NAMES = (
    "fake",
    "transformers llama",
    "transformers gpt2",
    "ctranslate2 llama",
    "ctranslate2 gpt2",
    "packed llama",
    "packed gpt2",
    "packed llama int8",
)
DECODING = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def subjects(
    built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Subject]:
    root = tmp_path_factory.mktemp("scoring")
    found = {"fake": fake("fake")}
    for name, end in (("llama", 2), ("gpt2", 0)):
        folder = converted(built[name], root / name)
        found[f"transformers {name}"] = transformers(name, built[name], end_ids=(end,))
        found[f"ctranslate2 {name}"] = ctranslate2(name, folder, end_ids=(end,))
        found[f"packed {name}"] = packed(name, built[name], (end,), "float32")
    found["packed llama int8"] = packed("int8", built["llama"], (2,), "int8")
    return found


@pytest.fixture(scope="module", params=NAMES)
def subject(request: pytest.FixtureRequest, subjects: dict[str, Subject]) -> Subject:
    return subjects[request.param]


@pytest.fixture(scope="module")
def engine(subject: Subject) -> Iterator[Engine]:
    engine = subject.make()
    yield engine
    engine.close()


def scored(
    engine: Engine,
    batches: Iterator[Batch],
    continuations: Sequence[Sequence[int]] = CONTINUATIONS,
) -> dict[int, tuple[float, ...]]:
    assert isinstance(engine, Scorer)
    found = {}
    for result in engine.score(batches, continuations):
        assert isinstance(result, Scores), result
        assert result.index not in found
        assert result.timing.submitted <= result.timing.finished
        found[result.index] = result.log_probs
    return found


def forward(
    folder: Path, prompt: Prompt, continuations: Sequence[Ids] = CONTINUATIONS
) -> list[float]:
    """log p of each continuation by one plain forward pass each."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    totals = []
    for ids in continuations:
        whole = torch.tensor([[*prompt.token_ids, *ids]])
        with torch.inference_mode():
            logits = model(whole, attention_mask=torch.ones_like(whole)).logits[0].double()
        places = range(len(prompt.token_ids) - 1, whole.shape[1] - 1)
        log_probs = logits.log_softmax(dim=-1)
        totals.append(sum(float(log_probs[at, t]) for at, t in zip(places, ids, strict=True)))
    return totals


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("library", ["transformers", "ctranslate2", "packed"])
def test_scores_are_those_of_plain_forward_passes(
    library: str, model: str, subjects: dict[str, Subject], built: dict[str, Path]
) -> None:
    """In batches, alone, and behind a shared prefix long enough for either way of CTranslate2."""
    subject = subjects[f"{library} {model}"]
    engine = subject.make()
    own = subject.prompts(6, **DECODING)
    prefix = tuple(range(20, 110))
    prompts = [replace(prompt, token_ids=prefix + prompt.token_ids[:9]) for prompt in own]
    expected = {prompt.index: forward(built[model], prompt) for prompt in prompts}
    for batches in (
        in_batches(prompts, 4),
        in_batches(prompts, 1),
        iter([Batch(tuple(prompts), 90)]),
    ):
        for index, values in scored(engine, batches).items():
            assert values == pytest.approx(expected[index], abs=1e-4)
    engine.close()


def test_a_row_alone_equals_the_row_in_any_batch(subject: Subject, engine: Engine) -> None:
    prompts = subject.prompts(14, **DECODING)
    expected = scored(engine, in_batches(prompts, 1))
    assert sorted(expected) == list(range(14))
    for rows in (3, 14):
        for index, values in scored(engine, in_batches(prompts[::-1], rows)).items():
            assert values == pytest.approx(expected[index], abs=2e-4)


def test_probabilities_of_all_single_tokens_sum_to_one(subject: Subject, engine: Engine) -> None:
    if subject.name == "fake":
        pytest.skip("it has no distribution")
    every = [(token,) for token in range(300)]
    for values in scored(engine, in_batches(subject.prompts(3, **DECODING), 3), every).values():
        assert math.fsum(map(math.exp, values)) == pytest.approx(1.0, abs=1e-6)


def test_scoring_and_generating_take_turns(subject: Subject, engine: Engine) -> None:
    """Looking ahead leaves nothing behind."""
    prompts = subject.prompts(5, **DECODING)
    before = list(engine.run(in_batches(prompts, 5)))
    first = scored(engine, in_batches(prompts, 5))
    after = list(engine.run(in_batches(prompts, 5)))
    again = scored(engine, in_batches(prompts, 5))
    assert all(again[index] == pytest.approx(first[index], abs=2e-4) for index in first)
    ids = [{r.index: getattr(r, "token_ids", None) for r in results} for results in (before, after)]
    assert ids[0] == ids[1]


def test_a_row_that_cannot_be_scored_costs_no_other(subject: Subject, engine: Engine) -> None:
    prompts = subject.prompts(3, **DECODING)
    bad = [
        Prompt(3, (), SamplingParams(4)),
        Prompt(4, (5, 1_000_000), SamplingParams(4)),
        Prompt(5, (5,) * 254, SamplingParams(4)),
    ]
    assert isinstance(engine, Scorer)
    results = list(engine.score(iter([Batch((bad[0], *prompts, *bad[1:]))]), CONTINUATIONS))
    codes = {r.index: r.code if isinstance(r, Failure) else "" for r in results}
    failed = {3: "empty_prompt", 4: "engine_error", 5: "prompt_too_long"}
    assert codes == dict.fromkeys(range(3), "") | failed


def test_nothing_to_score(engine: Engine) -> None:
    assert scored(engine, iter([])) == scored(engine, iter([Batch(())])) == {}


def test_a_closed_engine_refuses(subject: Subject) -> None:
    engine = subject.make()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        scored(engine, in_batches(subject.prompts(2), 2))


def test_a_batch_that_fails_is_halved() -> None:
    subject = fake("fake")
    engine = subject.make(faults=Faults(fail_rows=frozenset({4})))
    assert isinstance(engine, Scorer)
    results = list(engine.score(in_batches(subject.prompts(9), 9), CONTINUATIONS))
    assert [r.index for r in results if isinstance(r, Failure)] == [4]
    assert sorted(r.index for r in results) == list(range(9))


def test_a_model_that_cannot_look_back_computes_anew(
    built: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from packhorse.engines.transformers import padded_batch

    subject = transformers("llama", built["llama"], end_ids=(2,))
    engine = subject.make()
    prompts = subject.prompts(5, **DECODING)
    expected = scored(engine, in_batches(prompts, 5))
    monkeypatch.setattr(padded_batch, "can_retract", lambda cache: False)
    for index, values in scored(engine, in_batches(prompts, 5)).items():
        assert values == pytest.approx(expected[index], abs=2e-4)


def computed(engine: Engine, batches: Iterator[Batch], continuations: Sequence[Ids]) -> int:
    """Tokens that the packed engine computed for these."""
    before = engine.spent["tokens"]  # type: ignore[attr-defined]
    scored(engine, batches, continuations)
    return int(engine.spent["tokens"] - before)  # type: ignore[attr-defined]


def test_packed_computes_prompts_and_what_they_share_once(subjects: dict[str, Subject]) -> None:
    """Blocks are of 16 tokens: of the 90 in common 80 are computed once, 10 copied."""
    subject = subjects["packed llama"]
    engine = subject.make(max_num_seqs=8, cache_bytes=None)
    prompt = Prompt(0, tuple(range(20, 100)), SamplingParams(4))
    beginnings = {ids[:length] for ids in CONTINUATIONS for length in range(1, len(ids))}
    assert computed(engine, in_batches([prompt], 1), CONTINUATIONS) == 80 + len(beginnings)
    prefix = tuple(range(20, 110))
    prompts = [Prompt(row, prefix + (120 + row,) * 8, SamplingParams(4)) for row in range(4)]
    found = computed(engine, iter([Batch(tuple(prompts), 90)]), [(7,)])
    assert found == 98 + 3 * 8
    engine.close()


def test_packed_scores_continuations_that_are_longer_than_a_step(
    subjects: dict[str, Subject], built: dict[str, Path]
) -> None:
    subject = subjects["packed gpt2"]
    engine = subject.make()
    prompts = subject.prompts(5, max_new_tokens=60)
    long = [tuple(range(30, 90)), tuple(range(30, 70))]
    for index, values in scored(engine, in_batches(prompts, 5), long).items():
        expected = forward(built["gpt2"], prompts[index], long)
        assert values == pytest.approx(expected, abs=1e-4)
    engine.close()


def test_packed_int8_scores_are_the_same_in_any_company(subjects: dict[str, Subject]) -> None:
    subject = subjects["packed llama int8"]
    engine = subject.make()
    prompts = subject.prompts(9, **DECODING)
    alone = scored(engine, in_batches(prompts, 1))
    assert scored(engine, in_batches(prompts, 9)) == alone
    engine.close()


def test_packed_refuses_continuations_of_another_vocabulary(subjects: dict[str, Subject]) -> None:
    subject = subjects["packed llama"]
    engine = subject.make()
    with pytest.raises(EngineError, match="token id 300 of a continuation is outside"):
        scored(engine, in_batches(subject.prompts(1), 1), [(5, 300)])
    engine.close()


def test_weights_that_give_no_numbers_fail_each_row_once(subjects: dict[str, Subject]) -> None:
    """The first prompt has a token whose embedding is no number; the blocks it had are used by
    the others."""
    subject = subjects["packed llama"]
    engine = subject.make(max_num_seqs=2)
    engine._network.weights.embeddings[7] = float("nan")  # type: ignore[attr-defined]
    prompts = [Prompt(0, (7,) * 20, SamplingParams(4))]
    prompts += [Prompt(row, (8 + row,) * 20, SamplingParams(4)) for row in range(1, 6)]
    continuations = [(20,), (21, 22), (23, 24)]
    assert isinstance(engine, Scorer)
    results = list(engine.score(in_batches(prompts, 6), continuations))
    assert sorted(result.index for result in results) == list(range(6))
    assert [result.index for result in results if isinstance(result, Failure)] == [0]
    engine.close()
