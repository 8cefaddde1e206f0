"""Which to use: non-inferiority within a margin, said with its uncertainty.

Classic and model are compared on the same test rows; the interval of the paired difference decides:

    classic - model  above -margin       the classic one is as good: use it, it costs less
                     below -margin       the model is better by more than the margin
                     holds -margin       these rows are too few to say

Who is not shown to beat always giving the most frequent label is never used. Where the classic one
does not suffice, the cascade may: it is used if it is as good as the model at a lower cost.
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
"""A gain over the most frequent label that cannot be excluded means: too small to say."""
MAX_MODEL_SHARE = 0.9
"""A cascade that sends more rows than this to the model is the model."""


@dataclass(frozen=True, slots=True)
class VerdictInputs:
    """All a verdict rests on.

    pair: classic against model, on the model's test rows. classic_gain, model_gain: each against
    the most frequent label. cascade: None where there is none. too_slow: names of contestants whose
    p95 breaks the limit. titles: of contestants by name.
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
    """winner: name of the contestant, "cascade", or "" for none. reason: sentences. cautions: what
    a reader must know before believing it. rows_needed: test rows with which the question would be
    decided with 80 % power, where it was left open."""

    kind: Kind
    winner: str
    title: str
    reason: str
    cautions: tuple[str, ...]
    rows_needed: int | None


def decide_verdict(case: VerdictInputs, cautions: Sequence[str] = ()) -> Verdict:
    """The verdict of a case."""
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
        return "neither", "", "Nobody who is shown to know anything keeps the limit of --max-p95."
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
    """Test rows for what was left open: who beats the most frequent label, or which of the two is
    better; None where no number of rows is known."""
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
    said = "; ".join(f"{_name(case, gain.left)} {_points(gain)}" for gain in gains)
    if any(not gain.is_inferior(-GAIN) for gain in gains):
        return (
            "too-small-to-say",
            "",
            f"On {case.pair.rows:,} test rows nobody is shown to beat always giving the most "
            f"frequent label, and nobody is shown not to: {said}.",
        )
    return (
        "neither",
        "",
        "Neither the classic contestants nor the language model are shown to beat always giving "
        f"the most frequent label: {said}. The labels do not follow from these texts in a way that "
        "either of them finds.",
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
        f"{_capital(_name(case, slow))} breaks the limit of --max-p95; {_name(case, fast)} keeps "
        f"it. Classic against model: {_points(case.pair)} on {case.pair.rows:,} test rows."
    )


def _open(case: VerdictInputs) -> str:
    return (
        f"{case.pair.rows:,} test rows are too few: {_name(case, case.pair.left)} has "
        f"{_points(case.pair)} against {_name(case, case.pair.right)}, and minus the margin of "
        f"{_number(case.margin)} points lies inside the interval."
    )


def _name(case: VerdictInputs, contestant: str) -> str:
    """A title as it stands in a sentence."""
    title = case.titles[contestant]
    return f"the {title}" if title.startswith(MODEL_TITLE) else title


def _points(pair: PairedComparison) -> str:
    """A difference in percentage points with its interval."""
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
