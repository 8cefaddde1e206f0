"""Saved classifiers: read back as they were, and nothing that was tampered with is run."""

from __future__ import annotations

import json
import os
import pickle
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import skops.io
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from labelled import texts
from packhorse.assess.classifiers import open_saved
from packhorse.assess.families import FAMILIES
from packhorse.assess.features import make_vectorizer
from packhorse.assess.prompting import PromptTemplate
from packhorse.assess.saved_classifier import (
    CARD,
    FITTED,
    Card,
    ClassicPart,
    ModelPart,
    read_card,
    read_fitted,
    write_card,
    write_fitted,
)
from packhorse.assess.tuning import TunedFamily, make_final_classifier
from packhorse.config import EngineConfig
from packhorse.errors import InputError, ModelError

PAIRS = texts(60, learnable=True)


def fit_to_context(family: str) -> Pipeline:
    labels = np.array([label for _, label in PAIRS])
    tuned = TunedFamily(FAMILIES[family], FAMILIES[family].values[-1], 0, 0, (), 0, 0)
    pipeline = Pipeline(
        [("features", make_vectorizer(60)), ("classifier", make_final_classifier(tuned, labels))]
    )
    return pipeline.fit([text for text, _ in PAIRS], labels)


def save(folder: Path, family: str = "tfidf-logistic") -> Card:
    part = ClassicPart(family, 1.0, "pieces", "", write_fitted(folder, fit_to_context(family)))
    card = Card("classic", "a title", ("bad", "good"), classic=part, text_column="text")
    write_card(folder, card)
    return card


@pytest.mark.parametrize("family", ["tfidf-logistic", "tfidf-svm", "tfidf-bayes"])
def test_what_is_read_back_answers_as_before(family: str, tmp_path: Path) -> None:
    card = save(tmp_path / "winner", family)
    assert read_card(tmp_path / "winner") == card
    said = [text for text, _ in PAIRS]
    classifier = open_saved(tmp_path / "winner")
    decisions = dict(classifier.decide(said))
    expected = fit_to_context(family).predict_proba(said)
    assert [decisions[place].label for place in range(60)] == [
        ("bad", "good")[best] for best in expected.argmax(axis=1)
    ]
    assert [decisions[place].confidence for place in range(60)] == pytest.approx(
        expected.max(axis=1).tolist()
    )
    assert {decision.by for decision in decisions.values()} == {"classic"}
    assert list(classifier.decide([])) == []


def test_a_card_of_a_model_and_a_cascade(tmp_path: Path) -> None:
    prompting = PromptTemplate("Which?", (("a", "A"), ("b", "B")), (("text", "a"),), 99)
    part = ModelPart("fake", "", EngineConfig("fake", threads=2), "choice", prompting, (0.4, 0.6))
    classic = save(tmp_path).classic
    for card in (
        Card("model", "title", ("a", "b"), model=part),
        Card("cascade", "title", ("a", "b"), classic, part, 0.75, facts={"rows": 3}),
    ):
        write_card(tmp_path, card)
        assert read_card(tmp_path) == card


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no saved classifier"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "has format 2"),
        ({"classes": "a"}, "is damaged"),
        ({"kind": "cascade"}, "a cascade lacks a part"),
        ({"kind": "oracle"}, "is damaged"),
        ({"classic": None}, "a classic lacks a part"),
    ],
)
def test_damaged_cards(change: dict[str, object], said: str, tmp_path: Path) -> None:
    save(tmp_path)
    document = json.loads((tmp_path / CARD).read_text()) | change
    (tmp_path / CARD).write_text(json.dumps(document))
    with pytest.raises(InputError, match=said):
        read_card(tmp_path)
    (tmp_path / CARD).write_text("[" * 10_000)
    with pytest.raises(InputError, match="is nested more than 64"):
        read_card(tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    data = bytearray((tmp_path / FITTED).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / FITTED).write_bytes(data)
    with pytest.raises(ModelError, match="it was changed"):
        open_saved(tmp_path)


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def planted(folder: Path, data: bytes) -> ClassicPart:
    folder.mkdir(exist_ok=True)
    (folder / FITTED).write_bytes(data)
    return ClassicPart("tfidf-logistic", 1.0, "pieces", "", sha256(data).hexdigest())


def test_pickles_and_foreign_types_are_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where card and file agree: whoever can write one can write both."""
    monkeypatch.chdir(tmp_path)
    foreign = Pipeline(
        [("run", FunctionTransformer(os.system)), ("classifier", fit_to_context("tfidf-svm"))]
    )
    for data, said in (
        (pickle.dumps(Evil()), "cannot be read"),
        (skops.io.dumps(foreign), "which no saved classifier needs"),
        (skops.io.dumps({"a": 1}), "no classifier"),
        (b"", "cannot be read"),
    ):
        with pytest.raises(ModelError, match=said):
            read_fitted(tmp_path / "planted", planted(tmp_path / "planted", data))
    assert not (tmp_path / "executed").exists()


def test_another_model_under_the_same_name_is_refused(tmp_path: Path) -> None:
    prompting = PromptTemplate("Which?", (("a", "A"), ("b", "B")))
    part = ModelPart("fake", "another", EngineConfig("fake"), "choice", prompting, None)
    write_card(tmp_path, Card("model", "title", ("a", "b"), model=part))
    with pytest.raises(ModelError, match="is not the model this classifier was saved with"):
        open_saved(tmp_path)
