"""The language model's side: what it is asked, how its choice is read, what is taken out of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import packhorse
import tiny_models
from labelled import rows, texts, write_answers
from packhorse.assess.budget import MIN_ROWS, PROMPT_VARIANTS, plan_model_rows
from packhorse.assess.config import AssessConfig
from packhorse.assess.language_model import (
    extract_label,
    generate_labels,
    iter_label_scores,
    score_labels,
)
from packhorse.assess.model_contest import run_model_contestants
from packhorse.assess.prompting import (
    EXAMPLE_TOKENS,
    draw_examples,
    truncate_text,
    zero_shot_template,
)
from packhorse.assess.splits import split
from packhorse.config import EngineConfig
from packhorse.data import Failure, SamplingParams, Scores
from packhorse.errors import ConfigError
from packhorse.evaluation.probabilities import divide_out_prior, label_probabilities, mean_prior
from packhorse.inference.model import Model
from packhorse.inference.prompts import requests_of
from packhorse.profiling.run_metrics import Meter
from packhorse.tokenization import ByteCodec, Tokenizer

NAMES = (("0", "not at all"), ("1", "at all"), ("2", "spam"))


@pytest.fixture
def fake() -> Iterator[Model]:
    with packhorse.load("fake", engine=EngineConfig("fake")) as model:
        yield model


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("spam", "2"),
        ("Spam. It asks for money.", "2"),
        ('\n"SPAM"', "2"),
        ("The answer is: spam", "2"),
        ("It is not at all", "0"),
        ("I would say at all costs", "1"),
        ("spam or at all", None),
        ("spammer", None),
        ("", None),
        ("I cannot tell", None),
    ],
)
def test_label_in(answer: str, label: str | None) -> None:
    assert extract_label(answer, NAMES) == label


def test_choice_is_by_the_mean_of_a_token() -> None:
    """Two labels equally probable a token are equally probable, whatever their length."""
    found = label_probabilities(np.array([[-2.0, -6.0], [-1.0, -6.0]]), [1, 3])
    assert found[0].tolist() == [0.5, 0.5]
    assert found[1] == pytest.approx([np.e / (1 + np.e), 1 / (1 + np.e)])


def test_a_prior_is_divided_out() -> None:
    """Zhao et al. 2021: what a content-free text gets becomes even, and others move with it."""
    free = np.array([[0.8, 0.2]])
    prior = mean_prior(free)
    assert divide_out_prior(free, prior)[0] == pytest.approx([0.5, 0.5])
    assert divide_out_prior(np.array([[0.7, 0.3]]), prior)[0] == pytest.approx(
        [0.7 / 0.8 / (0.7 / 0.8 + 0.3 / 0.2), 0.3 / 0.2 / (0.7 / 0.8 + 0.3 / 0.2)]
    )


@given(
    st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=1, max_size=8),
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
)
def test_choices_stay_distributions(raw: list[list[float]], prior: list[float]) -> None:
    chances = np.array(raw) / np.sum(raw, axis=1, keepdims=True)
    found = divide_out_prior(chances, prior)
    assert found.sum(axis=1) == pytest.approx(np.ones(len(raw)))
    assert (found >= 0).all()
    even = divide_out_prior(chances, [0.2, 0.2, 0.2])
    assert even == pytest.approx(chances)


def test_no_row_has_an_even_prior() -> None:
    assert mean_prior(np.empty((0, 4))) == (0.25,) * 4


class Chat(ByteCodec):
    has_chat_template = True


def test_prompts_of_a_chat_model_and_of_a_base_model() -> None:
    zero = zero_shot_template("Mind the tone.", [("b", "bad one")], ["a", "b"], 100)
    asked = zero.whole_instruction
    assert asked == "Mind the tone.\nAnswer with exactly one of: a, bad one."
    assert zero.prompts(["hello"], Chat()) == [({"role": "user", "content": f"{asked}\n\nhello"},)]
    assert zero.prompts(["hello"], ByteCodec()) == [f"{asked}\n\nText: hello\nLabel:"]
    assert zero.continuations(Chat()) == ["a", "bad one"]
    assert zero.continuations(ByteCodec()) == [" a", " bad one"]


def test_examples_stand_before_the_text_so_that_they_are_shared() -> None:
    zero = zero_shot_template(None, [], ["a", "b"], 100)
    few = replace(zero, examples=(("one", "a"), ("two", "b")))
    (chat,) = few.prompts(["three"], Chat())
    assert [turn["role"] for turn in chat if not isinstance(turn, str)] == [
        "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    assert few.prompts(["three"], ByteCodec())[0].endswith(  # type: ignore[union-attr]
        "Text: one\nLabel: a\n\nText: two\nLabel: b\n\nText: three\nLabel:"
    )


def test_examples_are_of_every_class_in_turn_and_cut() -> None:
    known = rows([("long " * 200, "a"), ("x", "a"), ("y", "a"), ("z", "b")])
    examples, used = draw_examples(known, 2, ByteCodec(), 0)
    assert [label for _, label in examples] == ["a", "b", "a"]
    assert len(used) == 3
    assert max(len(text) for text, _ in examples) <= EXAMPLE_TOKENS
    assert draw_examples(known, 0, ByteCodec(), 0) == ((), frozenset())


@pytest.mark.parametrize("text", ["short", "x" * 10**6, "é" * 500])
def test_long_texts_are_cut_to_tokens(text: str) -> None:
    cut = truncate_text(text, 99, ByteCodec())
    assert text.startswith(cut)
    assert len(ByteCodec().encode_fragment(cut)) <= 99
    assert "\N{REPLACEMENT CHARACTER}" not in cut


def test_names_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="no label 'c'"):
        zero_shot_template(None, [("c", "see")], ["a", "b"], 100)
    with pytest.raises(ConfigError, match="the same name"):
        zero_shot_template(None, [("a", "b")], ["a", "b"], 100)


@pytest.mark.parametrize(
    ("seconds", "minutes", "there_are", "asked", "test"),
    [
        (1.0, 8.0, 1000, None, 78),
        (0.01, 8.0, 1000, None, 1000),
        (60.0, 8.0, 1000, None, MIN_ROWS),
        (60.0, 8.0, 7, None, 7),
        (60.0, 8.0, 1000, 300, 300),
        (0.01, 8.0, 50, 300, 50),
    ],
)
def test_rows_for_the_time_there_is(
    seconds: float, minutes: float, there_are: int, asked: int | None, test: int
) -> None:
    found = plan_model_rows(seconds, minutes, there_are, 5_000, asked)
    assert found.test == test
    assert MIN_ROWS <= found.validation <= 200
    if asked is None and MIN_ROWS < test < there_are:
        assert found.minutes == pytest.approx(minutes, rel=0.05)
    assert plan_model_rows(seconds, minutes, there_are, 3, asked).validation == 3
    assert found.minutes >= PROMPT_VARIANTS * found.test * seconds / 60


def test_planted_answers_are_found_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = texts(60, learnable=False)
    monkeypatch.setenv("PACKHORSE_FAKE_ANSWERS", str(write_answers(tmp_path / "a.json", pairs)))
    parts = split(rows(pairs), grouped=False, seed=0)
    with packhorse.load("fake", engine=EngineConfig("fake")) as model:
        side = run_model_contestants(model, AssessConfig("fake", ""), parts, lambda message: None)
    truth = [parts.test[place].label for place in side.test]
    assert [entry.name for entry in side.entries] == [
        "zero-shot-choice", "few-shot-choice", "zero-shot-text", "few-shot-text",
    ]  # fmt: skip
    for entry in side.entries:
        assert entry.predictions.is_correct(truth).all()
        assert entry.validated == 1.0
        assert entry.indices == side.test
    few = side.entries[1].part
    assert few is not None
    shown = {text for text, _ in few.prompting.examples}
    validated = {parts.train[place].text for place in side.validation}
    assert len(shown) == 4
    assert not shown & validated


def test_an_ignorant_model_is_near_chance(fake: Model) -> None:
    pairs = texts(120, learnable=True)
    parts = split(rows(pairs), grouped=False, seed=0)
    side = run_model_contestants(fake, AssessConfig("fake", ""), parts, lambda message: None)
    for entry in side.entries[:2]:
        assert (
            0.15
            < entry.predictions.is_correct([parts.test[p].label for p in entry.indices]).mean()
            < 0.85
        )
    assert set(side.entries[2].predictions.labels) == {None}


def test_the_models_rows_keep_the_classes_in_proportion(fake: Model) -> None:
    pairs = [
        (text, "ab"[number % 4 == 0])
        for number, (text, _) in enumerate(texts(400, learnable=False))
    ]
    parts = split(rows(pairs), grouped=False, seed=0)
    config = AssessConfig("fake", "", model_rows=40)
    side = run_model_contestants(fake, config, parts, lambda message: None)
    labels = [parts.test[place].label for place in side.test]
    assert len(set(side.test)) == 40
    assert abs(labels.count("b") - 10) <= 1


def test_a_row_that_fails_has_no_label_and_costs_no_other(fake: Model) -> None:
    too_long = "x" * (fake.capabilities.max_context + 1)
    prompting = zero_shot_template(None, [], ["a", "b"], 10**6)
    said = score_labels(fake, prompting, ["fine", too_long, "fine too"]).predictions(
        ["a", "b"], None
    )
    assert [label is None for label in said.labels] == [False, True, False]
    assert said.failed == 1
    assert said.probabilities is not None
    assert said.probabilities[1].tolist() == [0.5, 0.5]
    found = dict(iter_label_scores(fake, prompting, ["fine", too_long]))
    assert isinstance(found[1], Failure)
    assert found[1].code == "prompt_too_long"
    assert generate_labels(fake, prompting, ["fine", too_long]).predictions.failed == 1


@pytest.mark.slow
def test_texts_and_examples_are_cut_to_the_context(tmp_path: Path) -> None:
    """The small model has 256 tokens: two examples of each of three labels do not fit into half."""
    folder = tiny_models.tiny_llama(tmp_path / "llama")
    pairs = [(f"{label} {text * 30}", label) for label in ("red", "green", "blue")
             for text, _ in texts(12, learnable=False)]  # fmt: skip
    parts = split(rows(pairs), grouped=False, seed=0)
    config = AssessConfig(str(folder), "", model_rows=2)
    with packhorse.load(str(folder), engine=EngineConfig("transformers")) as model:
        side = run_model_contestants(model, config, parts, lambda message: None)
    assert [entry.predictions.failed for entry in side.entries] == [0, 0]
    assert [entry.name for entry in side.entries] == ["zero-shot-choice", "zero-shot-text"]
    assert "no few-shot prompt" in side.notes[0]


def test_an_instruction_that_fills_the_context(fake: Model) -> None:
    parts = split(rows(texts(40, learnable=True)), grouped=False, seed=0)
    config = AssessConfig("fake", "", instruction="x" * fake.capabilities.max_context)
    with pytest.raises(ConfigError, match="fill the model's context"):
        run_model_contestants(fake, config, parts, lambda message: None)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "packed"])
def test_a_label_that_begins_another_is_told_from_it(engine: str, tmp_path: Path) -> None:
    """Each then gets the token that ends an answer; scores are those of the whole answers."""
    folder = tiny_models.tiny_llama(tmp_path / "llama")
    prompting = zero_shot_template(None, [], ["good", "good enough", "bad"], 50)
    with packhorse.load(str(folder), engine=EngineConfig(engine)) as model:
        ours = score_labels(model, prompting, ["some text", "another"]).probabilities
        codec = model.codec
        ids = [(*codec.encode_fragment(label), 2) for label, _ in prompting.names]
        prompts = prompting.prompts(["some text", "another"], codec)
        decoding = SamplingParams(max_new_tokens=max(map(len, ids)))
        generation_run = model.start_generation(
            Tokenizer(codec), decoding, model.budget(decoding), Meter()
        )
        whole = np.empty((2, 3))
        for result in generation_run.scores(requests_of(prompts), ids):
            assert isinstance(result, Scores)
            whole[result.index] = result.log_probs
    assert ours == pytest.approx(label_probabilities(whole, [len(each) for each in ids]), abs=1e-6)


@pytest.mark.slow
def test_engines_choose_alike_on_the_demonstration_model(demo_model_folder: Path) -> None:
    """float32 on every engine, behind a shared instruction."""
    said = [
        "WIN A FREE PRIZE now!!! Click here to claim your $1000 cash reward, limited offer",
        "Hi Anna, are we still meeting for lunch on Tuesday? Bring the report. Best, Tom",
        "Cheap pills without prescription, order today and save 80 percent!!!",
        "The patch for the parser is attached, please review it before the release.",
    ]
    prompting = zero_shot_template("Is this e-mail spam or ham?", [], ["ham", "spam"], 200)
    found = {}
    for engine in ("transformers", "ctranslate2", "packed"):
        config = EngineConfig(engine)
        with packhorse.load(str(demo_model_folder), engine=config) as model:
            found[engine] = score_labels(model, prompting, said).probabilities
    assert found["transformers"] == pytest.approx(found["ctranslate2"], abs=2e-3)
    assert found["transformers"] == pytest.approx(found["packed"], abs=1e-4)
    assert len(set(found["transformers"][:, 0].round(3))) == 4
