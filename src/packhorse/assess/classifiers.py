"""Load saved classifiers and classify texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from packhorse.assess.language_model import (
    Floats,
    ShouldStop,
    extract_label,
    iter_generated_texts,
    iter_label_scores,
    never_stop,
)
from packhorse.assess.saved_classifier import Card, ClassicPart, ModelPart, read_card, read_fitted
from packhorse.batching.policies import AUTO
from packhorse.config import BatchingConfig
from packhorse.data import Failure
from packhorse.errors import ModelError
from packhorse.evaluation.probabilities import divide_out_prior
from packhorse.inference.model import Model, load_prepared, prepare_for
from packhorse.inputs import format_value
from packhorse.models import default_engine_of

By = Literal["classic", "model"]
StageCallback = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Decision:
    """The label of one text.

    Attributes:
        label: None if there is none; `code` and `message` give the reason.
        confidence: probability of the label; None for free text.
        by: which part decided.
    """

    label: str | None
    confidence: float | None
    by: By
    code: str = ""
    message: str = ""


class Classifier(Protocol):
    def decide(
        self, texts: Sequence[str], stopping: ShouldStop = never_stop
    ) -> Iterator[tuple[int, Decision]]:
        """Yield the index of each text with its decision; begin no further ones once `stopping` is
        true.
        """
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Classic:
    """A pipeline that takes texts, or a classifier of sentence vectors with `encoder`."""

    fitted: Any
    encoder: Any = None

    def decide(
        self, texts: Sequence[str], stopping: ShouldStop = never_stop
    ) -> Iterator[tuple[int, Decision]]:
        if not texts or stopping():
            return
        seen = list(texts) if self.encoder is None else self.encoder.embed(texts)
        probabilities = np.asarray(self.fitted.predict_proba(seen), dtype=np.float64)
        for index, (best, row) in enumerate(
            zip(probabilities.argmax(axis=1), probabilities, strict=True)
        ):
            yield index, Decision(str(self.fitted.classes_[best]), float(row[best]), "classic")

    def close(self) -> None:
        """Release nothing: there are no resources."""


@dataclass(slots=True)
class LanguageModel:
    """A loaded model and its prompt; classes: sorted."""

    model: Model
    part: ModelPart
    classes: tuple[str, ...]

    def decide(
        self, texts: Sequence[str], stopping: ShouldStop = never_stop
    ) -> Iterator[tuple[int, Decision]]:
        prompting = self.part.prompting
        if self.part.answers == "text":
            for index, text in iter_generated_texts(self.model, prompting, texts, stopping):
                yield index, self._read(text)
            return
        for index, choice in iter_label_scores(self.model, prompting, texts, stopping):
            yield index, self._chosen(choice)

    def _read(self, text: str | Failure) -> Decision:
        if isinstance(text, Failure):
            return Decision(None, None, "model", text.code, text.message)
        label = extract_label(text, self.part.prompting.names)
        if label is None:
            message = f"the model's answer contains no label: {format_value(text)}"
            return Decision(None, None, "model", "no_label", message)
        return Decision(label, None, "model")

    def _chosen(self, choice: Floats | Failure) -> Decision:
        if isinstance(choice, Failure):
            return Decision(None, None, "model", choice.code, choice.message)
        prior = self.part.prior
        probabilities = choice if prior is None else divide_out_prior(choice[None], prior)[0]
        best = int(probabilities.argmax())
        return Decision(self.classes[best], float(probabilities[best]), "model")

    def close(self) -> None:
        self.model.close()


@dataclass(slots=True)
class Cascade:
    """The classic classifier if it is confident; otherwise the model, loaded on first use."""

    classic: Classic
    load_model: Callable[[], LanguageModel]
    threshold: float
    _model: LanguageModel | None = field(default=None)

    def decide(
        self, texts: Sequence[str], stopping: ShouldStop = never_stop
    ) -> Iterator[tuple[int, Decision]]:
        unsure = []
        for index, decision in self.classic.decide(texts, stopping):
            if (decision.confidence or 0.0) < self.threshold:
                unsure.append(index)
            else:
                yield index, decision
        if unsure:
            if self._model is None:
                self._model = self.load_model()
            asked = [texts[index] for index in unsure]
            for row, decision in self._model.decide(asked, stopping):
                yield unsure[row], decision

    def close(self) -> None:
        if self._model is not None:
            self._model.close()


def open_saved(
    folder: Path,
    batching: BatchingConfig | None = None,
    report: StageCallback = lambda message: None,
    date: datetime | None = None,
) -> Classifier:
    """Load the classifier of a folder that `packhorse assess` saved; date: see Model.

    Raises:
        InputError: the folder holds no saved classifier or a damaged one.
        ModelError: its language model has changed since it was saved.
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


def open_classic(folder: Path, part: ClassicPart, report: StageCallback) -> Classic:
    """Load the classic part of a saved classifier."""
    fitted = read_fitted(folder, part)
    return Classic(fitted, load_encoder(part.embeddings, report) if part.embeddings else None)


def open_model(
    card: Card,
    part: ModelPart,
    batching: BatchingConfig,
    report: StageCallback,
    date: datetime | None = None,
) -> LanguageModel:
    """Load the language model of a saved classifier, preparing it if needed; date: see Model."""
    engine = part.engine
    if engine.engine == AUTO:
        engine = replace(engine, engine=default_engine_of(part.model))
    prepared = prepare_for(part.model, engine, report=report)
    if prepared.fingerprint != part.fingerprint:
        raise ModelError(
            f"{part.model} is not the model this classifier was saved with: its files differ",
            "run packhorse assess again with this model",
        )
    model = load_prepared(prepared, engine, batching, report)
    model.date = date
    return LanguageModel(model, part, card.classes)


def load_encoder(name: str, report: StageCallback) -> Any:
    """Load the sentence encoder of a catalog name or a folder."""
    from packhorse.embeddings import SentenceEncoder
    from packhorse.models import prepare_embedding_model

    return SentenceEncoder(prepare_embedding_model(name, report))
