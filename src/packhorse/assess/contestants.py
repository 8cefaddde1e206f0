"""Result of one contestant: input of metrics, costs and verdict."""

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
    """Predictions of a contestant and how it came to them.

    Attributes:
        predictions: of the test rows at `indices` (indices of the test part).
        validated: accuracy inside the training part, which selects the finalists.
        validated_on: rows of that accuracy, in words.
        settings: chosen settings, for display.
        tuned: classic only, as fitted.
        once_seconds: classic only: preparing the training rows, tuning and fitting, as
            once_core_seconds.
        part: model only, as saved.
        spent: model only, on the test rows.
        validation: model only: predictions of the validation rows, for a cascade.
    """

    name: str
    title: str
    kind: Kind
    predictions: Predictions
    indices: tuple[int, ...]
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
