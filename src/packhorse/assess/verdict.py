"""Decide which classifier to use: non-inferiority within a margin.

Classic and model are compared on the same test rows; the interval of the paired difference decides:

    classic - model  above -margin       the classic one is as good: use it, it costs less
                     below -margin       the model is better by more than the margin
                     contains -margin    too few rows to decide

A contestant that is not shown to beat the most frequent label is never used. If the classic one is
not good enough, the cascade is used if it is as good as the model at a lower cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from packhorse.assess.cascade import Cascade
from packhorse.assess.contestants import MODEL_TITLE
from packhorse.assess.paired_comparison import PairedComparison, rows_needed

Kind = Literal["classic", "language-model", "cascade", "neither", "too-small-to-say"]

GAIN = 0.10
"""If a gain over the most frequent label this large is possible, rows are too few to say."""
MAX_MODEL_SHARE = 0.9
"""A cascade that sends a larger share of rows to the model counts as the model."""


@dataclass(frozen=True, slots=True)
class VerdictInputs:
    """Everything a verdict depends on.

    Attributes:
        pair: classic against model, on the model's test rows.
        classic_gain: classic against the most frequent label; model_gain: model against it.
        cascade: None if there is none.
        too_slow: names of contestants whose p95 exceeds the limit.
        titles: of contestants by name.
    """

    margin: float
    pair: PairedComparison
    classic_gain: PairedComparison
    model_gain: PairedComparison
    cascade: Cascade | None
    too_slow: frozenset[str]
    titles: dict[str, str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The recommendation.

    Attributes:
        winner: name of the contestant, "cascade", or "" for none.
        reason: sentences.
        cautions: what limits its reliability.
        rows_needed: test rows that would decide an open question with 80 % power.
    """

    kind: Kind
    winner: str
    title: str
    reason: str
    cautions: tuple[str, ...]
    rows_needed: int | None


def decide_verdict(case: VerdictInputs, cautions: Sequence[str] = ()) -> Verdict:
    """Return the verdict with its reason."""
    kind, winner, reason = _decide(case)
    needed = _rows_to_decide(case) if kind == "too-small-to-say" else None
    if needed is not None:
        reason += (
            f" If the differences stay as they are, about {needed:,} test rows would decide it."
        )
    return Verdict(kind, winner, _TITLES[kind], reason, tuple(cautions), needed)


def _decide(case: VerdictInputs) -> tuple[Kind, str, str]:
    classic, model = case.pair.left, case.pair.right
    knows, model_knows = case.classic_gain.is_superior, case.model_gain.is_superior
    if not knows and not model_knows:
        return _none_beats_majority(case)
    if case.too_slow & {classic, model}:
        if knows and classic not in case.too_slow:
            return "classic", classic, _only_fast_enough(case, classic, model)
        if model_knows and model not in case.too_slow:
            return "language-model", model, _only_fast_enough(case, model, classic)
        return (
            "neither",
            "",
            "No classifier that is shown to beat the most frequent label keeps --max-p95.",
        )
    if knows and case.pair.is_non_inferior(case.margin):
        return "classic", classic, _as_good(case)
    if knows and model_knows and _cascade_serves(case):
        return "cascade", "cascade", _cascade_reason(case)
    if case.pair.is_inferior(case.margin):  # and so better than the most frequent label, too
        return "language-model", model, _better_model(case)
    if not knows and case.pair.is_non_inferior(case.margin):
        return "language-model", model, _only_model_beats_majority(case)
    return "too-small-to-say", "", _open(case)


def _rows_to_decide(case: VerdictInputs) -> int | None:
    """Return test rows that would decide an open verdict; None if unknown."""
    gains = (case.classic_gain, case.model_gain)
    pairs = [(case.pair, case.margin)]
    if not any(gain.is_superior for gain in gains):
        pairs = [(gain, 0.0) for gain in gains if gain.difference.value > 0]
    found = [
        (rows_needed(each.left_only, each.right_only, each.rows, margin), each.rows)
        for each, margin in pairs
    ]
    return min((needed for needed, rows in found if needed and needed > rows), default=None)


def _cascade_serves(case: VerdictInputs) -> bool:
    cascade = case.cascade
    if cascade is None or "cascade" in case.too_slow:
        return False
    return (
        cascade.against_model.is_non_inferior(case.margin)
        and 0 < cascade.point.share <= MAX_MODEL_SHARE
    )


def _none_beats_majority(case: VerdictInputs) -> tuple[Kind, str, str]:
    gains = (case.classic_gain, case.model_gain)
    gains_text = "; ".join(f"{_name(case, gain.left)} {_points(gain)}" for gain in gains)
    if any(not gain.is_inferior(-GAIN) for gain in gains):
        return (
            "too-small-to-say",
            "",
            f"{case.pair.rows:,} test rows are too few to show whether either classifier beats "
            f"always giving the most frequent label: {gains_text}.",
        )
    return (
        "neither",
        "",
        "Neither the classic contestants nor the language model are shown to beat always giving "
        f"the most frequent label: {gains_text}. Neither of them finds a relation between these "
        "texts and their labels.",
    )


def _as_good(case: VerdictInputs) -> str:
    start, rows = _capital(_name(case, case.pair.left)), f"on {case.pair.rows:,} test rows"
    if case.pair.is_superior:
        return (
            f"{start} is better than {_name(case, case.pair.right)}: {_points(case.pair)} {rows}."
        )
    return (
        f"{start} is as good as {_name(case, case.pair.right)}: {_points(case.pair)} {rows}, so if "
        f"it is worse, then by less than the margin of {_number(case.margin)} points."
    )


def _better_model(case: VerdictInputs) -> str:
    knows = ""
    if not case.classic_gain.is_superior:
        knows = f", and is not shown to beat the most frequent label ({_points(case.classic_gain)})"
    return (
        f"{_capital(_name(case, case.pair.right))} is better than {_name(case, case.pair.left)}: "
        f"the classic one has {_points(case.pair)} against it on {case.pair.rows:,} test rows"
        f"{knows}."
    )


def _cascade_reason(case: VerdictInputs) -> str:
    assert case.cascade is not None
    point = case.cascade.point
    return (
        f"{_capital(_name(case, case.pair.left))} alone is not shown to be as good as "
        f"{_name(case, case.pair.right)} ({_points(case.pair)}); with the {point.share:.0%} of "
        "rows it is least sure of given to the model it is: "
        f"{_points(case.cascade.against_model)}, for {point.core_seconds:,.3g} core-seconds per "
        "1,000 rows."
    )


def _only_model_beats_majority(case: VerdictInputs) -> str:
    return (
        f"Only {_name(case, case.pair.right)} is shown to beat always giving the most frequent "
        f"label: {_points(case.model_gain)}; {_name(case, case.pair.left)} has "
        f"{_points(case.classic_gain)}."
    )


def _only_fast_enough(case: VerdictInputs, fast: str, slow: str) -> str:
    return (
        f"{_capital(_name(case, slow))} exceeds --max-p95; {_name(case, fast)} does "
        f"not. Classic against model: {_points(case.pair)} on {case.pair.rows:,} test rows."
    )


def _open(case: VerdictInputs) -> str:
    return (
        f"{case.pair.rows:,} test rows are too few: {_name(case, case.pair.left)} has "
        f"{_points(case.pair)} against {_name(case, case.pair.right)}, and minus the margin of "
        f"{_number(case.margin)} points lies inside the interval."
    )


def _name(case: VerdictInputs, contestant: str) -> str:
    """Return a title as used within a sentence."""
    title = case.titles[contestant]
    return f"the {title}" if title.startswith(MODEL_TITLE) else title


def _points(pair: PairedComparison) -> str:
    """Format a difference in percentage points with its interval."""
    difference = pair.difference
    assert difference.low is not None
    assert difference.high is not None
    ends = f"{difference.low * 100:+.1f} to {difference.high * 100:+.1f}"
    return f"{difference.value * 100:+.1f} points (95%: {ends})"


def _number(share: float) -> str:
    return f"{share * 100:g}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_TITLES: dict[Kind, str] = {
    "classic": "Use the classic classifier",
    "language-model": "Use the language model",
    "cascade": "Use both: the cascade",
    "neither": "Use neither",
    "too-small-to-say": "Too small to say",
}
