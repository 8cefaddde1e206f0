"""A contestant and what it said: what figures, costs and the verdict are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from packhorse.assess.language_model import TimeSpent
from packhorse.assess.metrics import Predictions
from packhorse.assess.saved_classifier import ModelPart
from packhorse.assess.tuning import TunedFamily

MODEL_TITLE = "language model"
Kind = Literal["dummy", "classic", "model"]


@dataclass(frozen=True, slots=True)
class ContestantResult:
    """said: of the test rows at `places` (of the test part). validated: accuracy inside the
    training part, by which finalists are chosen; validated_on: on what. settings: for people.

    Classic: tuned, and fitted as it is saved. once_seconds, once_core_seconds: preparing the
    training rows, tuning and fitting. Model: part, as it is saved; spent: on the test rows;
    validation: what it said of the validation rows, for a cascade.
    """

    name: str
    title: str
    kind: Kind
    predictions: Predictions
    places: tuple[int, ...]
    validated: float
    validated_on: str
    settings: dict[str, str] = field(default_factory=dict)
    tuned: TunedFamily | None = None
    fitted: Any = None
    once_seconds: float = 0.0
    once_core_seconds: float = 0.0
    part: ModelPart | None = None
    spent: TimeSpent | None = None
    validation: Predictions | None = None
