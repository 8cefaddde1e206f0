"""Sentences of an assessment that all reports share."""

from __future__ import annotations

import math
from typing import Any

from packhorse.assess.contestants import MODEL_TITLE
from packhorse.assess.document import Assessment
from packhorse.assess.learning_curve import LearningCurve
from packhorse.assess.metric_definitions import interval_text
from packhorse.evaluation.statistics import Estimate
from packhorse.reports.formats import number, percent
from packhorse.reports.text import counted, machine_facts, when


def headline(assessment: Assessment) -> str:
    """Return rows, labels, machine and date on one line."""
    known = assessment.profile
    parts = [
        str(assessment.settings.get("labelled", "")),
        counted(known.rows, "row"),
        counted(len(known.classes), "label"),
        f"{known.train:,} to train, {known.test:,} to test",
        *machine_facts(assessment.machine),
        when(assessment.created),
    ]
    return " · ".join(part for part in parts if part)


def profile_lines(assessment: Assessment) -> list[str]:
    """Return a summary of the rows and of those left out."""
    known = assessment.profile
    listed = ", ".join(f"{label} {count:,}" for label, count in list(known.classes.items())[:12])
    more = f" and {len(known.classes) - 12} others" if len(known.classes) > 12 else ""
    characters = known.characters
    scripts = ", ".join(f"{name} {percent(part)}" for name, part in list(known.scripts.items())[:3])
    lines = [
        f"{known.rows:,} rows, {known.usable:,} usable"
        + "".join(f", {count:,} {reason}" for reason, count in known.unusable.items())
        + (f"; {known.drawn:,} of them drawn" if known.drawn < known.usable else ""),
        f"Removed before splitting: {known.exact_duplicates:,} exact and {known.near_duplicates:,} "
        f"near duplicates ({counted(known.conflicting, 'cluster')} with more than one label)",
        f"Labels: {listed}{more}; the largest has {number(known.imbalance)} times the rows of the "
        "smallest",
        f"Lengths: median {characters['median']:,.0f} characters, p95 {characters['p95']:,.0f}, "
        f"longest {characters['longest']:,.0f}; scripts: {scripts}",
    ]
    if known.groups:
        lines.append(f"{known.groups:,} groups, none on both sides of the split")
    for name, left in (("too few rows", known.rare), ("too few training rows", known.unseen)):
        if left:
            shown = ", ".join(f"{label} ({count})" for label, count in list(left.items())[:8])
            lines.append(f"Labels left out for {name}: {shown}{', …' if len(left) > 8 else ''}")
    return lines


def pair_sentence(assessment: Assessment) -> str:
    """Return the comparison of the finalists with every number the verdict depends on."""
    pair = assessment.pair
    return (
        f"{assessment.classic.title} against the {assessment.language_model.title}, on the same "
        f"{pair.rows:,} rows: {points(pair.difference)}; right alone {pair.left_only:,} and "
        f"{pair.right_only:,}; exact McNemar p = {probability(pair.mcnemar_p)}; bootstrap "
        f"{points(pair.bootstrap)}."
    )


def points(estimate: Estimate) -> str:
    """Format a difference of accuracies in percentage points."""
    ends = ""
    if estimate.low is not None and estimate.high is not None:
        ends = f" (95%: {100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"
    return f"{100 * estimate.value:+.1f} points{ends}"


def probability(value: float) -> str:
    return "below 0.0001" if value < 0.0001 else f"{value:.2g}"


def labels_needed_sentence(curve: LearningCurve) -> str:
    """Return how many labels per class match the language model."""
    first, last, needed = curve.points[0], curve.points[-1], curve.needed
    title = curve.title[:1].upper() + curve.title[1:]
    if needed.value is None:
        sentence = (
            f"{title} does not reach the language model's {percent(curve.level)} with all "
            f"{last.rows:,} training labels"
        )
        reached = f"; {percent(needed.reached)} of resamples do" if needed.reached else ""
        return f"{sentence}{reached}."
    if needed.value == 0:
        return (
            f"{title} has the language model's {percent(curve.level)} with fewer than "
            f"{first.per_class} labels per class{_span(curve)}."
        )
    return (
        f"{title} needs about {needed.value:,.0f} labels per class to match the language model's "
        f"{percent(curve.level)}{_span(curve)}."
    )


def _span(curve: LearningCurve) -> str:
    low, high = curve.needed.low, curve.needed.high
    if low == high == 0 or low is None:
        return ""
    start = f"fewer than {curve.points[0].per_class}" if low == 0 else f"{low:,.0f}"
    end = "more than there are" if high is None else f"{high:,.0f}"
    return f" (95%: {start} to {end})"


def cascade_sentence(assessment: Assessment) -> str:
    """Return the recommended cascade on the test rows; "" if there is none."""
    cascade = assessment.cascade
    if cascade is None:
        return ""
    point = cascade.point
    rows = f"chosen on {cascade.validation_rows:,} validation rows"
    if point.share == 0 and point.threshold == 0:
        return (
            "Cascade: on the validation rows the language model corrects no row that the classic "
            f"classifier is unsure of, so all rows stay with the classic one ({rows})."
        )
    if point.share == 1:
        return (
            "Cascade: the classic classifier is never confident enough, so all rows go to the "
            f"language model ({rows})."
        )
    return (
        f"Cascade: below a confidence of {point.threshold:.3f} ({rows}) {percent(point.share)} of "
        f"the test rows go to the language model; {percent(point.accuracy.value)} are right "
        f"({interval_text(point.accuracy)}), {points(cascade.against_classic.difference)} against "
        f"the classic one alone and {points(cascade.against_model.difference)} against the model, "
        f"for {number(point.core_seconds)} core-seconds per 1,000 rows."
    )


def economy_lines(assessment: Assessment) -> list[str]:
    """Return break-even and monthly costs."""
    known = assessment.economy
    lines = []
    if known.rows is None:
        lines.append("The classic contestant saves no core time per row.")
    else:
        lines.append(
            f"Tuning and fitting the classic finalist took {number(known.once_core_seconds)} "
            f"core-seconds once; it saves {number(known.saved_core_seconds)} per row, so it breaks "
            f"even after {math.ceil(known.rows):,} rows{_months(known.after_months)}."
        )
    if known.rows_with_labels is not None:
        lines.append(
            f"Including the price of its {known.labels:,} labels: after "
            f"{math.ceil(known.rows_with_labels):,} rows{_months(known.after_months_with_labels)}."
        )
    for month in known.months:
        busy = f" ({number(month.cores)} cores busy all month)" if month.cores >= 0.1 else ""
        money = "" if month.money is None else f", {month.money:,.2f} in the prices' currency"
        lines.append(
            f"A month of {known.volume:,.0f} rows, {month.title}: {number(month.core_hours)} "
            f"core-hours{busy}{money}."
        )
    return lines


def _months(months: float | None) -> str:
    if months is None:
        return ""
    return f" ({number(months)} months of the volume)" if months >= 1 else ", in the first month"


def verdict_title(assessment: Assessment) -> str:
    """Return the verdict in a few words with the classifier it names."""
    verdict = assessment.verdict
    if verdict.kind in ("classic", "language-model"):
        title = assessment.contestant(verdict.winner).title
        return f"{verdict.title}: {title.removeprefix(f'{MODEL_TITLE}, ')}"
    return verdict.title


def method_lines(assessment: Assessment) -> list[str]:
    """Return how the contest was held."""
    settings = assessment.settings
    return [
        "A quarter of the distinct rows is the test part, stratified by label; nothing is "
        "fitted, tuned or chosen on it. Classic contestants are tuned on the training part by "
        f"{assessment.contestant('majority').validated_on.split(' ')[0]} stratified folds; "
        "finalists are those with the highest accuracy inside the training part.",
        f"The language model classified {assessment.model_rows:,} test rows, a stratified sample, "
        f"and {assessment.validation_rows:,} validation rows of the training part. All contestants "
        "are compared on the same test rows.",
        "Constrained choice: the probability of each label as the answer, mean over its tokens, "
        "with the model's prior divided out if that helps on the validation rows. Free text: a "
        "label is extracted from the generated text.",
        f"The verdict is one of non-inferiority within a margin of {100 * settings['margin']:g} "
        "points: the 95% score interval (Tango) of the paired difference classic - model lies "
        "above minus the margin, below it, or contains it, which means: too small to say. A "
        "contestant not shown to beat always giving the most frequent label is never used.",
        "Costs of a single row, memory and cold start are measured in a separate process that "
        "works like packhorse classify.",
    ]


def runtime_line(ran: dict[str, Any]) -> str:
    """Return engine and settings on one line."""
    return ", ".join(f"{name} {value}" for name, value in ran.items())
