"""Accuracy against labels, and rows that a technique turned from right to wrong or back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packhorse.evaluation.statistics import (
    Estimate,
    mcnemar_exact,
    paired_bootstrap,
    wilson_interval,
)


@dataclass(frozen=True, slots=True)
class LabelReport:
    """Accuracy of reference and trial on the same labelled rows.

    labelled: rows that have a label. label_accuracy, reference_accuracy: share of them answered
    right, Wilson intervals. accuracy_difference: trial - reference, paired bootstrap over rows.
    right_to_wrong, wrong_to_right: rows the trial flipped. mcnemar_p: probability of flips at
    least this uneven if both directions were equally likely (exact, two-sided).
    """

    labelled: int
    label_accuracy: Estimate
    reference_accuracy: Estimate
    accuracy_difference: Estimate
    right_to_wrong: int
    wrong_to_right: int
    mcnemar_p: float


def judge_labels(
    reference_right: Sequence[bool], trial_right: Sequence[bool], *, seed: int = 0
) -> LabelReport | None:
    """Return accuracies, flips and the exact McNemar test of rows; None for no rows.

    reference_right, trial_right: one value per labelled row, same order.
    """
    pairs = list(zip(reference_right, trial_right, strict=True))
    count = len(pairs)
    reference = wilson_interval(sum(reference_right), count)
    trial = wilson_interval(sum(trial_right), count)
    difference = paired_bootstrap(
        [float(right) for right in trial_right],
        [float(right) for right in reference_right],
        seed=seed,
    )
    if reference is None or trial is None or difference is None:
        return None
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    return LabelReport(count, trial, reference, difference, lost, won, mcnemar_exact(lost, won))
