"""From what contestants said to figures, pairs, curves and the cascade."""

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
"""Test rows of the language model below which a reader is told that more would say more."""
DOMINANT_SHARE = 0.9
"""Share of one label above which accuracy hides the others."""
P95_SHARE = 0.05
"""A cascade that sends more rows than this to the model has the model's p95."""


@dataclass(frozen=True, slots=True)
class ContestResults:
    """All that was said. entries: of everybody; classic, model, majority: the finalists, chosen by
    their accuracy inside the training part, and the dummy they must beat."""

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

    def truth(self, places: Sequence[int]) -> list[str]:
        """Labels of test rows."""
        return [self.parts.test[place].label for place in places]

    def shared(self, entry: ContestantResult) -> Predictions:
        """What an entry said of the rows that the model was asked, in their order."""
        row_of = {place: row for row, place in enumerate(entry.places)}
        return entry.predictions.select([row_of[place] for place in self.side.test])

    def compared(self, left: ContestantResult, right: ContestantResult) -> PairedComparison:
        """Two entries on all test rows that both were asked."""
        known = set(right.places)
        places = [place for place in left.places if place in known]
        rows = [{place: row for row, place in enumerate(each.places)} for each in (left, right)]
        said = [
            each.predictions.select([row_of[place] for place in places])
            for each, row_of in zip((left, right), rows, strict=True)
        ]
        truth = self.truth(places)
        own, theirs = (each.is_correct(truth).tolist() for each in said)
        return compare_pair(left.name, right.name, own, theirs, seed=self.seed)


def evaluate(
    config: AssessConfig, outcome: ContestResults, costs: dict[str, Costs]
) -> dict[str, Any]:
    """The fields of an Assessment that are judged."""
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
    """Names of contestants that break the limit of --max-p95; of the cascade, too."""
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
    """An entry with its figures."""
    shared = outcome.truth(outcome.side.test)
    return Contestant(
        name=entry.name,
        title=entry.title,
        kind=entry.kind,
        finalist=entry in (outcome.classic, outcome.model),
        figures=classification_metrics(
            entry.predictions, outcome.truth(entry.places), outcome.classes, seed=outcome.seed
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
    """Of the best contestant of each kind of features, against the model's finalist."""
    data = outcome.data
    places = list(outcome.side.test)
    truth = np.array(outcome.truth(places))
    model_correct = outcome.shared(outcome.model).is_correct(truth.tolist())
    kinds: dict[str, list[ContestantResult]] = {}
    for entry in outcome.entries:
        if entry.kind == "classic" and entry.tuned is not None:
            kinds.setdefault(entry.tuned.family.sees, []).append(entry)
    found = []
    for entries in kinds.values():
        tuned = _best(entries).tuned
        assert tuned is not None
        test = data.test[places]
        found.append(
            learning_curve(
                tuned, data.data, test, truth, model_correct, data.train, seed=outcome.seed
            )
        )
    return tuple(found)


def evaluate_cascade(
    outcome: ContestResults, costs: dict[str, Costs], margin: float
) -> Cascade | None:
    """Both finalists together; None where they leave nothing to choose on.

    The classic finalist's probabilities of the validation rows come from fits without them.
    """
    classic, model = outcome.classic, outcome.model
    validation = np.array(outcome.side.validation, dtype=np.int64)
    if model.validation is None or classic.tuned is None or not len(validation):
        return None
    chances = out_of_fold_probabilities(
        classic.tuned, outcome.data.data, outcome.data.folds, validation
    )
    known = Predictions(tuple(outcome.classes[place] for place in chances.argmax(axis=1)), chances)
    truth = [outcome.parts.train[place].label for place in validation]
    own, theirs = outcome.shared(classic), outcome.shared(model)
    wanted = outcome.truth(outcome.side.test)
    points = [
        _point(threshold, (known, model.validation, truth), (own, theirs, wanted), costs, outcome)
        for threshold in candidate_thresholds(chances.max(axis=1))
    ]
    place = choose_point(
        [point.validation_accuracy for point in points],
        [point.validation_share for point in points],
        margin,
    )
    said, _ = apply_threshold(own, theirs, points[place].threshold)
    right = [each.is_correct(wanted).tolist() for each in (said, own, theirs)]
    return Cascade(
        classic=classic.name,
        model=model.name,
        points=tuple(points),
        chosen=place,
        validation_rows=len(validation),
        against_model=compare_pair(CASCADE, model.name, right[0], right[2], seed=outcome.seed),
        against_classic=compare_pair(CASCADE, classic.name, right[0], right[1], seed=outcome.seed),
    )


def find_cautions(outcome: ContestResults, label_names: Sequence[tuple[str, str]]) -> list[str]:
    """What a reader must know before believing the verdict."""
    asked, there_are = len(outcome.side.test), len(outcome.parts.test)
    found = []
    if asked < min(FEW_ROWS, there_are):
        found.append(
            f"the language model was asked {asked:,} of {there_are:,} test rows, in the time it "
            "had; --max-minutes or --model-rows gives it more."
        )
    if all(label.isdecimal() for label in outcome.classes) and not label_names:
        found.append(
            "the labels are numbers, which tell the language model nothing; give them words with "
            "--label-name."
        )
    counts = Counter(row.label for row in outcome.parts.train)
    label, count = counts.most_common(1)[0]
    if count >= DOMINANT_SHARE * len(outcome.parts.train):
        share = count / len(outcome.parts.train)
        found.append(
            f"{share:.0%} of the rows have the label {label!r}: accuracy says little of the "
            "others; look at macro-F1 and balanced accuracy too."
        )
    if failed := outcome.model.predictions.failed:
        found.append(
            f"{failed:,} rows could not be asked of the language model; they count as wrong."
        )
    return found


def _point(
    threshold: float,
    validation: tuple[Predictions, Predictions, list[str]],
    test: tuple[Predictions, Predictions, list[str]],
    costs: dict[str, Costs],
    outcome: ContestResults,
) -> CascadePoint:
    tried, goes = apply_threshold(*validation[:2], threshold)
    said, to_model = apply_threshold(*test[:2], threshold)
    share = float(to_model.mean())
    own, theirs = costs[outcome.classic.name], costs[outcome.model.name]
    return CascadePoint(
        threshold=threshold,
        share=share,
        accuracy=wilson_accuracy(said, test[2]),
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
