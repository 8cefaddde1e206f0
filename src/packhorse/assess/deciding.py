"""From a contest and its costs to the verdict: the judged fields of an Assessment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packhorse.assess import judging
from packhorse.assess.cascade import Cascade
from packhorse.assess.config import AssessConfig
from packhorse.assess.costs import Costs
from packhorse.assess.economy import Economy, Offer, economy
from packhorse.assess.entries import ContestantResult
from packhorse.assess.judging import CASCADE, Outcome, cautions
from packhorse.assess.verdict import VerdictInputs, judge

P95_SHARE = 0.05
"""A cascade that sends more rows than this to the model has the model's p95."""


def judged(config: AssessConfig, outcome: Outcome, costs: dict[str, Costs]) -> dict[str, Any]:
    """The fields of an Assessment that are judged."""
    curves = judging.curves(outcome)
    cascade = judging.cascade_of(outcome, costs, config.margin)
    classic, model = outcome.classic, outcome.model
    titles = {entry.name: entry.title for entry in outcome.entries} | {CASCADE: "the cascade"}
    case = VerdictInputs(
        margin=config.margin,
        pair=outcome.compared(classic, model),
        classic_gain=outcome.compared(classic, outcome.majority),
        model_gain=outcome.compared(model, outcome.majority),
        cascade=cascade,
        too_slow=too_slow(config, costs, cascade),
        titles=titles,
    )
    return {
        "contestants": tuple(
            judging.contestant(outcome, entry, costs.get(entry.name)) for entry in outcome.entries
        ),
        "pair": case.pair,
        "classic_gain": case.classic_gain,
        "model_gain": case.model_gain,
        "curves": curves,
        "cascade": cascade,
        "economy": _economy(config, outcome, costs, cascade),
        "verdict": judge(case, cautions(outcome, config.label_names)),
    }


def too_slow(
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


def _economy(
    config: AssessConfig, outcome: Outcome, costs: dict[str, Costs], cascade: Cascade | None
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
    return economy(
        classic, model, others, config.volume, config.price_core_hour, config.price_label
    )
