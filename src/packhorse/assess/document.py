"""An assessment as data: what `report.json` holds and every other report is drawn from.

All times are seconds, all sizes bytes, all shares between 0 and 1. `FORMAT` changes whenever a
reader of an older report.json would misread a newer one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from packhorse.assess.cascade import Cascade
from packhorse.assess.costs import Costs
from packhorse.assess.economy import Economy
from packhorse.assess.learning_curve import LearningCurve
from packhorse.assess.metrics import ClassificationMetrics
from packhorse.assess.paired_comparison import PairedComparison
from packhorse.assess.profile import Profile
from packhorse.assess.verdict import Verdict

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Contestant:
    """figures: on its own test rows, which for a classic contestant are all. shared: on the rows
    that the language model was asked, the same for everybody. validated: accuracy inside the
    training part, by which finalists are chosen, on what `validated_on` says. finalist: it went
    into the verdict. costs: None for those that answer without reading.
    """

    name: str
    title: str
    kind: Literal["dummy", "classic", "model"]
    finalist: bool
    figures: ClassificationMetrics
    shared: ClassificationMetrics
    validated: float
    validated_on: str
    settings: dict[str, str]
    once_seconds: float
    once_core_seconds: float
    costs: Costs | None


@dataclass(frozen=True, slots=True)
class Assessment:
    """The whole document.

    model: as the person named it; ran: engine, compute type, workers and threads that really ran.
    prompt: instruction and examples. rows: test and validation rows of the language model, and
    their number in each class. pair: the finalists on the same rows; gains: of each against the
    most frequent label. curves: of the best contestant of each kind of features. saved: folder of
    the winner, "" for none. classify: the command that uses it. notes: what was left out, and why.
    """

    command: str
    created: str
    model: str
    ran: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    profile: Profile
    prompt: dict[str, Any]
    model_rows: int
    validation_rows: int
    contestants: tuple[Contestant, ...]
    pair: PairedComparison
    classic_gain: PairedComparison
    model_gain: PairedComparison
    curves: tuple[LearningCurve, ...]
    cascade: Cascade | None
    economy: Economy
    verdict: Verdict
    saved: str
    classify: str
    notes: tuple[str, ...]
    seconds: float
    format: int = field(default=FORMAT)

    def contestant(self, name: str) -> Contestant:
        """The contestant of a name."""
        return next(each for each in self.contestants if each.name == name)

    @property
    def classic(self) -> Contestant:
        """The classic finalist."""
        return self.contestant(self.pair.left)

    @property
    def language_model(self) -> Contestant:
        """The language model's finalist."""
        return self.contestant(self.pair.right)
