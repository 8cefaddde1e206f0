"""An assessment as data: the content of report.json, from which all other reports are rendered.

Times are seconds, sizes bytes, shares between 0 and 1. `FORMAT` changes if a reader of an older
report.json would misread a newer one.
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
    """A contestant and its figures.

    Attributes:
        finalist: whether it enters the verdict.
        figures: on its own test rows, which for a classic contestant are all.
        shared: on the rows of the language model, the same for all contestants.
        validated: accuracy inside the training part, on `validated_on`; it selects the finalists.
        costs: None for the baselines that ignore the text.
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

    Attributes:
        model: as given by the user.
        ran: engine, compute type, workers and threads in use.
        prompt: instruction and examples.
        model_rows: test rows of the language model.
        pair: the finalists on the same rows.
        classic_gain: classic finalist against the most frequent label; model_gain: of the model.
        curves: of the best contestant of each kind of features.
        saved: folder of the winner; "" for none.
        classify: command that uses it.
        notes: what was left out, with reasons.
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
        """Return the contestant of a name."""
        return next(each for each in self.contestants if each.name == name)

    @property
    def classic(self) -> Contestant:
        """The classic finalist."""
        return self.contestant(self.pair.left)

    @property
    def language_model(self) -> Contestant:
        """The language model's finalist."""
        return self.contestant(self.pair.right)
