"""Evaluate the contestants: metrics, paired comparisons, curves, cascade, verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.assess.cascade import (
    Cascade,
    CascadePoint,
    apply_threshold,
    candidate_thresholds,
    choose_point,
    wilson_accuracy,
)
from packhorse.assess.classic_contest import Classic
from packhorse.assess.config import AssessConfig
from packhorse.assess.contestants import ContestantResult
from packhorse.assess.costs import Costs
from packhorse.assess.document import Contestant
from packhorse.assess.economy import Economy, Offer, compute_economy
from packhorse.assess.families import MAJORITY
from packhorse.assess.learning_curve import LearningCurve, learning_curve
from packhorse.assess.metrics import Predictions, classification_metrics
from packhorse.assess.model_contest import ModelResults
from packhorse.assess.paired_comparison import PairedComparison, compare_pair
from packhorse.assess.splits import Split
from packhorse.assess.tuning import out_of_fold_probabilities
from packhorse.assess.verdict import VerdictInputs, decide_verdict

CASCADE = "cascade"
FEW_ROWS = 100
"""With fewer test rows of the language model the report warns."""
DOMINANT_SHARE = 0.9
"""Share of one label above which accuracy hides the other labels."""
P95_SHARE = 0.05
"""If a cascade sends a larger share of rows to the model, its p95 is the model's."""


@dataclass(frozen=True, slots=True)
class ContestResults:
    """All predictions; classic, model and majority are the two finalists and the baseline.

    Finalists have the highest accuracy inside the training part.
    """

    parts: Split
    data: Classic
    side: ModelResults
    entries: tuple[ContestantResult, ...]
    seed: int

    @property
    def classic(self) -> ContestantResult:
        return _best([entry for entry in self.entries if entry.kind == "classic"])

    @property
    def model(self) -> ContestantResult:
        return _best([entry for entry in self.entries if entry.kind == "model"])

    @property
    def majority(self) -> ContestantResult:
        return next(entry for entry in self.entries if entry.name == MAJORITY)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.data.data.classes

    def truth(self, indices: Sequence[int]) -> list[str]:
        """Return the labels of test rows."""
        return [self.parts.test[index].label for index in indices]

    def shared(self, entry: ContestantResult) -> Predictions:
        """Return the predictions of an entry for the language model's test rows."""
        row_of = {index: row for row, index in enumerate(entry.indices)}
        return entry.predictions.select([row_of[index] for index in self.side.test])

    def compared(self, left: ContestantResult, right: ContestantResult) -> PairedComparison:
        """Compare two entries on all test rows that both answered."""
        known = set(right.indices)
        indices = [index for index in left.indices if index in known]
        rows = [{index: row for row, index in enumerate(each.indices)} for each in (left, right)]
        predicted = [
            each.predictions.select([row_of[index] for index in indices])
            for each, row_of in zip((left, right), rows, strict=True)
        ]
        truth = self.truth(indices)
        own, theirs = (each.is_correct(truth).tolist() for each in predicted)
        return compare_pair(left.name, right.name, own, theirs, seed=self.seed)


def evaluate(
    config: AssessConfig, outcome: ContestResults, costs: dict[str, Costs]
) -> dict[str, Any]:
    """Return the fields of an Assessment that follow from predictions and costs."""
    curves = learning_curves(outcome)
    cascade = evaluate_cascade(outcome, costs, config.margin)
    classic, model = outcome.classic, outcome.model
    titles = {entry.name: entry.title for entry in outcome.entries} | {CASCADE: "the cascade"}
    inputs = VerdictInputs(
        margin=config.margin,
        pair=outcome.compared(classic, model),
        classic_gain=outcome.compared(classic, outcome.majority),
        model_gain=outcome.compared(model, outcome.majority),
        cascade=cascade,
        too_slow=find_too_slow(config, costs, cascade),
        titles=titles,
    )
    return {
        "contestants": tuple(
            evaluate_contestant(outcome, entry, costs.get(entry.name)) for entry in outcome.entries
        ),
        "pair": inputs.pair,
        "classic_gain": inputs.classic_gain,
        "model_gain": inputs.model_gain,
        "curves": curves,
        "cascade": cascade,
        "economy": _economy(config, outcome, costs, cascade),
        "verdict": decide_verdict(inputs, find_cautions(outcome, config.label_names)),
    }


def find_too_slow(
    config: AssessConfig, costs: dict[str, Costs], cascade: Cascade | None
) -> frozenset[str]:
    """Return the contestants, and the cascade, that exceed --max-p95."""
    if config.max_p95 is None:
        return frozenset()
    slow = {name for name, each in costs.items() if each.p95 > config.max_p95}
    if cascade is not None:
        asked = {cascade.classic} | ({cascade.model} if cascade.point.share > P95_SHARE else set())
        slow |= {CASCADE} if asked & slow else set()
    return frozenset(slow)


def evaluate_contestant(
    outcome: ContestResults, entry: ContestantResult, costs: Costs | None
) -> Contestant:
    """Return an entry with its metrics."""
    shared = outcome.truth(outcome.side.test)
    return Contestant(
        name=entry.name,
        title=entry.title,
        kind=entry.kind,
        finalist=entry in (outcome.classic, outcome.model),
        figures=classification_metrics(
            entry.predictions, outcome.truth(entry.indices), outcome.classes, seed=outcome.seed
        ),
        shared=classification_metrics(
            outcome.shared(entry), shared, outcome.classes, seed=outcome.seed
        ),
        validated=entry.validated,
        validated_on=entry.validated_on,
        settings=entry.settings,
        once_seconds=entry.once_seconds,
        once_core_seconds=entry.once_core_seconds,
        costs=costs,
    )


def learning_curves(outcome: ContestResults) -> tuple[LearningCurve, ...]:
    """Return the curve of the best contestant of each kind of features."""
    data = outcome.data
    indices = list(outcome.side.test)
    truth = np.array(outcome.truth(indices))
    model_correct = outcome.shared(outcome.model).is_correct(truth.tolist())
    kinds: dict[str, list[ContestantResult]] = {}
    for entry in outcome.entries:
        if entry.kind == "classic" and entry.tuned is not None:
            kinds.setdefault(entry.tuned.family.sees, []).append(entry)
    found = []
    for entries in kinds.values():
        tuned = _best(entries).tuned
        assert tuned is not None
        test = data.test[indices]
        found.append(
            learning_curve(
                tuned, data.data, test, truth, model_correct, data.train, seed=outcome.seed
            )
        )
    return tuple(found)


def evaluate_cascade(
    outcome: ContestResults, costs: dict[str, Costs], margin: float
) -> Cascade | None:
    """Evaluate the cascade of both finalists; None if there are no validation rows to choose on.

    The classic finalist's probabilities of the validation rows are out of fold.
    """
    classic, model = outcome.classic, outcome.model
    validation = np.array(outcome.side.validation, dtype=np.int64)
    if model.validation is None or classic.tuned is None or not len(validation):
        return None
    probabilities = out_of_fold_probabilities(
        classic.tuned, outcome.data.data, outcome.data.folds, validation
    )
    known = Predictions(
        tuple(outcome.classes[index] for index in probabilities.argmax(axis=1)), probabilities
    )
    truth = [outcome.parts.train[index].label for index in validation]
    own, theirs = outcome.shared(classic), outcome.shared(model)
    wanted = outcome.truth(outcome.side.test)
    points = [
        _point(threshold, (known, model.validation, truth), (own, theirs, wanted), costs, outcome)
        for threshold in candidate_thresholds(probabilities.max(axis=1))
    ]
    index = choose_point(
        [point.validation_accuracy for point in points],
        [point.validation_share for point in points],
        margin,
    )
    predicted, _ = apply_threshold(own, theirs, points[index].threshold)
    right = [each.is_correct(wanted).tolist() for each in (predicted, own, theirs)]
    return Cascade(
        classic=classic.name,
        model=model.name,
        points=tuple(points),
        chosen=index,
        validation_rows=len(validation),
        against_model=compare_pair(CASCADE, model.name, right[0], right[2], seed=outcome.seed),
        against_classic=compare_pair(CASCADE, classic.name, right[0], right[1], seed=outcome.seed),
    )


def find_cautions(outcome: ContestResults, label_names: Sequence[tuple[str, str]]) -> list[str]:
    """Return what limits the reliability of the verdict."""
    asked, there_are = len(outcome.side.test), len(outcome.parts.test)
    found = []
    if asked < min(FEW_ROWS, there_are):
        found.append(
            f"the language model classified only {asked:,} of {there_are:,} test rows in the given "
            "time; raise --max-minutes or --model-rows."
        )
    if all(label.isdecimal() for label in outcome.classes) and not label_names:
        found.append(
            "the labels are numbers, which mean nothing to the language model; name them with "
            "--label-name."
        )
    counts = Counter(row.label for row in outcome.parts.train)
    label, count = counts.most_common(1)[0]
    if count >= DOMINANT_SHARE * len(outcome.parts.train):
        share = count / len(outcome.parts.train)
        found.append(
            f"{share:.0%} of the rows have the label {label!r}: accuracy says little about the "
            "others; see macro-F1 and balanced accuracy, too."
        )
    if failed := outcome.model.predictions.failed:
        found.append(f"{failed:,} rows failed on the language model; they count as wrong.")
    return found


def _point(
    threshold: float,
    validation: tuple[Predictions, Predictions, list[str]],
    test: tuple[Predictions, Predictions, list[str]],
    costs: dict[str, Costs],
    outcome: ContestResults,
) -> CascadePoint:
    tried, goes = apply_threshold(*validation[:2], threshold)
    predicted, to_model = apply_threshold(*test[:2], threshold)
    share = float(to_model.mean())
    own, theirs = costs[outcome.classic.name], costs[outcome.model.name]
    return CascadePoint(
        threshold=threshold,
        share=share,
        accuracy=wilson_accuracy(predicted, test[2]),
        validation_accuracy=float(tried.is_correct(validation[2]).mean()),
        validation_share=float(goes.mean()),
        seconds=own.seconds + share * theirs.seconds,
        core_seconds=own.core_seconds + share * theirs.core_seconds,
    )


def _economy(
    config: AssessConfig, outcome: ContestResults, costs: dict[str, Costs], cascade: Cascade | None
) -> Economy:
    labels = len(outcome.parts.train)

    def offer(entry: ContestantResult) -> Offer:
        needs = labels if entry.kind == "classic" else 0
        return Offer(
            entry.name,
            entry.title,
            costs[entry.name].core_seconds,
            entry.once_core_seconds,
            needs,
        )

    classic, model = offer(outcome.classic), offer(outcome.model)
    others: Sequence[Offer] = ()
    if cascade is not None and cascade.point.share:
        spent = cascade.point.core_seconds
        others = (Offer(CASCADE, "the cascade", spent, classic.once, labels),)
    return compute_economy(
        classic, model, others, config.volume, config.price_core_hour, config.price_label
    )


def _best(entries: Sequence[ContestantResult]) -> ContestantResult:
    return max(entries, key=lambda entry: entry.validated)
