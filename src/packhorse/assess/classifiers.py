"""Saved classifiers at work: texts in, decisions out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from packhorse.assess.language_model import Floats, Stopping, choosing, label_in, never, writing
from packhorse.assess.priors import without_prior
from packhorse.assess.saved import Card, ClassicPart, ModelPart, read_card, read_fitted
from packhorse.config import BatchingConfig
from packhorse.data import Failure
from packhorse.errors import ModelError
from packhorse.inference.model import Model, load_prepared, prepare_for
from packhorse.inputs import format_value

By = Literal["classic", "model"]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Decision:
    """What is said of one text.

    label: None where there is none; `code` and `message` then say why. confidence: probability of
    the label, None where the answer is free text. by: who decided.
    """

    label: str | None
    confidence: float | None
    by: By
    code: str = ""
    message: str = ""


class Classifier(Protocol):
    def decide(
        self, texts: Sequence[str], stopping: Stopping = never
    ) -> Iterator[tuple[int, Decision]]:
        """The place of each text with its decision, as they are known; once `stopping` says True,
        no further ones are begun."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Classic:
    """fitted: a pipeline that takes texts, or a classifier of sentence vectors with `encoder`."""

    fitted: Any
    encoder: Any = None

    def decide(
        self, texts: Sequence[str], stopping: Stopping = never
    ) -> Iterator[tuple[int, Decision]]:
        if not texts or stopping():
            return
        seen = list(texts) if self.encoder is None else self.encoder.embed(texts)
        chances = np.asarray(self.fitted.predict_proba(seen), dtype=np.float64)
        for place, (best, row) in enumerate(zip(chances.argmax(axis=1), chances, strict=True)):
            yield place, Decision(str(self.fitted.classes_[best]), float(row[best]), "classic")

    def close(self) -> None:
        """Nothing is held."""


@dataclass(slots=True)
class LanguageModel:
    """A loaded model with its way to answer. classes: sorted."""

    model: Model
    part: ModelPart
    classes: tuple[str, ...]

    def decide(
        self, texts: Sequence[str], stopping: Stopping = never
    ) -> Iterator[tuple[int, Decision]]:
        prompting = self.part.prompting
        if self.part.answers == "text":
            for place, text in writing(self.model, prompting, texts, stopping):
                yield place, self._read(text)
            return
        for place, choice in choosing(self.model, prompting, texts, stopping):
            yield place, self._chosen(choice)

    def _read(self, text: str | Failure) -> Decision:
        if isinstance(text, Failure):
            return Decision(None, None, "model", text.code, text.message)
        label = label_in(text, self.part.prompting.names)
        if label is None:
            message = f"the model's answer is none of the labels: {format_value(text)}"
            return Decision(None, None, "model", "no_label", message)
        return Decision(label, None, "model")

    def _chosen(self, choice: Floats | Failure) -> Decision:
        if isinstance(choice, Failure):
            return Decision(None, None, "model", choice.code, choice.message)
        prior = self.part.prior
        chances = choice if prior is None else without_prior(choice[None], prior)[0]
        best = int(chances.argmax())
        return Decision(self.classes[best], float(chances[best]), "model")

    def close(self) -> None:
        self.model.close()


@dataclass(slots=True)
class Cascade:
    """The classic one decides where it is sure; the model is loaded when a first row is not."""

    classic: Classic
    load_model: Callable[[], LanguageModel]
    threshold: float
    _model: LanguageModel | None = field(default=None)

    def decide(
        self, texts: Sequence[str], stopping: Stopping = never
    ) -> Iterator[tuple[int, Decision]]:
        unsure = []
        for place, decision in self.classic.decide(texts, stopping):
            if (decision.confidence or 0.0) < self.threshold:
                unsure.append(place)
            else:
                yield place, decision
        if unsure:
            if self._model is None:
                self._model = self.load_model()
            asked = [texts[place] for place in unsure]
            for row, decision in self._model.decide(asked, stopping):
                yield unsure[row], decision

    def close(self) -> None:
        if self._model is not None:
            self._model.close()


def open_saved(
    folder: Path,
    batching: BatchingConfig | None = None,
    report: Report = lambda message: None,
    date: datetime | None = None,
) -> Classifier:
    """The classifier of a folder that `packhorse assess` saved, loaded. date: see Model.

    Raises InputError and ModelError for a folder that is none, is damaged, or whose language model
    is not the one it was saved with.
    """
    card = read_card(folder)
    chosen = batching or BatchingConfig()
    if card.kind == "model":
        assert card.model is not None
        return open_model(card, card.model, chosen, report, date)
    assert card.classic is not None
    classic = open_classic(folder, card.classic, report)
    if card.kind == "classic":
        return classic
    assert card.model is not None
    part = card.model
    return Cascade(
        classic, lambda: open_model(card, part, chosen, report, date), card.threshold or 0.0
    )


def open_classic(folder: Path, part: ClassicPart, report: Report) -> Classic:
    """The classic part of a saved classifier."""
    fitted = read_fitted(folder, part)
    return Classic(fitted, encoder_named(part.embeddings, report) if part.embeddings else None)


def open_model(
    card: Card,
    part: ModelPart,
    batching: BatchingConfig,
    report: Report,
    date: datetime | None = None,
) -> LanguageModel:
    """The language model of a saved classifier, prepared where it is not yet. date: see Model."""
    prepared = prepare_for(part.model, part.engine, report=report)
    if prepared.fingerprint != part.fingerprint:
        raise ModelError(
            f"{part.model} is not the model this classifier was saved with: its files differ",
            "run packhorse assess again with this model",
        )
    model = load_prepared(prepared, part.engine, batching, report)
    model.date = date
    return LanguageModel(model, part, card.classes)


def encoder_named(name: str, report: Report) -> Any:
    """The sentence encoder of a catalog name or a folder."""
    from packhorse.embeddings import SentenceEncoder
    from packhorse.models import prepare_embedding_model

    return SentenceEncoder(prepare_embedding_model(name, report))
