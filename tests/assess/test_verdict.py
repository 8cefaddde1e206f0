"""The verdict as a table: what was seen, and what may be said of it."""

from __future__ import annotations

import pytest

from packhorse.assess.cascade import Cascade, CascadePoint
from packhorse.assess.paired_comparison import PairedComparison, compare_pair
from packhorse.assess.verdict import VerdictInputs, decide_verdict
from packhorse.evaluation.statistics import wilson_interval

TITLES = {
    "svm": "TF-IDF + linear SVM",
    "choice": "language model, zero-shot, constrained choice",
    "majority": "always the most frequent label",
    "cascade": "the cascade",
}


def of(left: str, right: str, left_only: int, right_only: int, rows: int) -> PairedComparison:
    both = rows - left_only - right_only
    own = [True] * left_only + [False] * right_only + [True] * both
    theirs = [False] * left_only + [True] * right_only + [True] * both
    return compare_pair(left, right, own, theirs)


def cascade(left_only: int, right_only: int, rows: int, share: float) -> Cascade:
    accuracy = wilson_interval(9, 10)
    assert accuracy is not None
    point = CascadePoint(0.8, share, accuracy, 0.9, share, 10.0, 20.0)
    against = of("cascade", "choice", left_only, right_only, rows)
    return Cascade("svm", "choice", (point,), 0, 100, against, of("cascade", "svm", 5, 0, rows))


KNOWS, IGNORANT, TINY = (300, 10, 600), (20, 22, 600), (1, 0, 5)
SAME, WORSE, OPEN = (2, 0, 1000), (10, 90, 600), (15, 20, 600)
GOOD_CASCADE, NO_CASCADE = (3, 0, 1000, 0.2), None


@pytest.mark.parametrize(
    ("compared", "classic", "model", "both", "slow", "kind", "winner"),
    [
        (SAME, KNOWS, KNOWS, NO_CASCADE, (), "classic", "svm"),
        ((90, 2, 600), KNOWS, IGNORANT, GOOD_CASCADE, (), "classic", "svm"),
        (WORSE, KNOWS, KNOWS, NO_CASCADE, (), "language-model", "choice"),
        (WORSE, KNOWS, KNOWS, GOOD_CASCADE, (), "cascade", "cascade"),
        (WORSE, KNOWS, KNOWS, (3, 0, 1000, 0.95), (), "language-model", "choice"),
        (WORSE, KNOWS, KNOWS, (0, 40, 600, 0.2), (), "language-model", "choice"),
        (WORSE, IGNORANT, KNOWS, GOOD_CASCADE, (), "language-model", "choice"),
        (OPEN, KNOWS, KNOWS, NO_CASCADE, (), "too-small-to-say", ""),
        (OPEN, KNOWS, KNOWS, GOOD_CASCADE, (), "cascade", "cascade"),
        (OPEN, KNOWS, KNOWS, GOOD_CASCADE, ("cascade",), "too-small-to-say", ""),
        (SAME, IGNORANT, KNOWS, NO_CASCADE, (), "language-model", "choice"),
        (OPEN, IGNORANT, IGNORANT, NO_CASCADE, (), "neither", ""),
        ((2, 1, 5), TINY, TINY, NO_CASCADE, (), "too-small-to-say", ""),
        ((5, 0, 6), (2, 0, 6), (0, 3, 6), NO_CASCADE, (), "too-small-to-say", ""),
        (OPEN, KNOWS, IGNORANT, NO_CASCADE, (), "too-small-to-say", ""),
        (WORSE, KNOWS, KNOWS, GOOD_CASCADE, ("choice", "cascade"), "classic", "svm"),
        (WORSE, IGNORANT, KNOWS, NO_CASCADE, ("choice",), "neither", ""),
        (SAME, KNOWS, KNOWS, NO_CASCADE, ("svm", "choice"), "neither", ""),
        (WORSE, KNOWS, KNOWS, NO_CASCADE, ("svm",), "language-model", "choice"),
        (SAME, KNOWS, KNOWS, GOOD_CASCADE, ("svm", "cascade"), "language-model", "choice"),
        (SAME, KNOWS, IGNORANT, NO_CASCADE, ("svm",), "neither", ""),
        (OPEN, IGNORANT, KNOWS, NO_CASCADE, (), "too-small-to-say", ""),
        (WORSE, KNOWS, IGNORANT, NO_CASCADE, (), "language-model", "choice"),
    ],
)  # fmt: skip
def test_verdicts(
    compared: tuple[int, int, int],
    classic: tuple[int, int, int],
    model: tuple[int, int, int],
    both: tuple[int, int, int, float] | None,
    slow: tuple[str, ...],
    kind: str,
    winner: str,
) -> None:
    found = decide_verdict(
        VerdictInputs(
            margin=0.01,
            pair=of("svm", "choice", *compared),
            classic_gain=of("svm", "majority", *classic),
            model_gain=of("choice", "majority", *model),
            cascade=cascade(*both) if both else None,
            too_slow=frozenset(slow),
            titles=TITLES,
        ),
        ["a caution"],
    )
    assert (found.kind, found.winner) == (kind, winner)
    assert found.cautions == ("a caution",)
    assert found.reason.endswith(".")
    assert (found.rows_needed is not None) == ("would decide" in found.reason)
    if "is better than" in found.reason:
        assert compared in (WORSE, (90, 2, 600))
    if "inside the interval" in found.reason:
        assert compared == OPEN


def test_a_wider_margin_lets_the_classic_one_win() -> None:
    verdicts = []
    for margin in (0.01, 0.05):
        case = VerdictInputs(
            margin=margin,
            pair=of("svm", "choice", *OPEN),
            classic_gain=of("svm", "majority", *KNOWS),
            model_gain=of("choice", "majority", *KNOWS),
            cascade=None,
            too_slow=frozenset(),
            titles=TITLES,
        )
        verdicts.append(decide_verdict(case))
    assert [verdict.kind for verdict in verdicts] == ["too-small-to-say", "classic"]
    assert verdicts[0].rows_needed is not None
    assert verdicts[0].rows_needed > 600
