"""Summarize the labelled rows: counts, classes, lengths, scripts."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from packhorse.assess.duplicates import DistinctRows
from packhorse.assess.rows import LabelledRow, LabelledRows
from packhorse.assess.splits import Split
from packhorse.evaluation.statistics import quantile

_CHARACTERS_LOOKED_AT = 200


@dataclass(frozen=True, slots=True)
class Profile:
    """Summary of the rows and of those left out.

    Attributes:
        rows: of the file.
        usable: rows that could be used; drawn: rows that were.
        unusable: counts by reason.
        exact_duplicates: removed; also near_duplicates.
        conflicting: clusters of duplicates with different labels.
        rare: labels left out for too few rows.
        unseen: labels left out because only the test part had them.
        classes: distinct rows by label, most frequent first.
        imbalance: largest / smallest class.
        groups: 0 for none.
        characters: p5, median, p95 and longest text.
        scripts: share of texts by the script of most of their letters.
    """

    rows: int
    usable: int
    drawn: int
    unusable: dict[str, int]
    exact_duplicates: int
    near_duplicates: int
    conflicting: int
    rare: dict[str, int]
    unseen: dict[str, int]
    classes: dict[str, int]
    imbalance: float
    groups: int
    train: int
    test: int
    characters: dict[str, float]
    scripts: dict[str, float]


def make_profile(
    labelled: LabelledRows,
    single: DistinctRows,
    rare: dict[str, int],
    parts: Split,
    *,
    grouped: bool,
) -> Profile:
    """Summarize the rows of the contest and those left out."""
    rows = (*parts.train, *parts.test)
    classes = dict(Counter(row.label for row in rows).most_common())
    lengths = [len(row.text) for row in rows]
    return Profile(
        rows=labelled.total,
        usable=labelled.drawn_from,
        drawn=len(labelled.rows),
        unusable=labelled.unusable,
        exact_duplicates=single.exact,
        near_duplicates=single.near,
        conflicting=single.conflicting,
        rare=rare,
        unseen=parts.unseen,
        classes=classes,
        imbalance=max(classes.values()) / min(classes.values()),
        groups=len({row.group for row in rows}) if grouped else 0,
        train=len(parts.train),
        test=len(parts.test),
        characters={
            "p5": quantile(lengths, 0.05) or 0.0,
            "median": quantile(lengths, 0.5) or 0.0,
            "p95": quantile(lengths, 0.95) or 0.0,
            "longest": float(max(lengths)),
        },
        scripts=_scripts(rows),
    )


def _scripts(rows: Sequence[LabelledRow]) -> dict[str, float]:
    """Return shares by the first word of the Unicode names of letters: LATIN, CYRILLIC, CJK."""
    found: Counter[str] = Counter()
    for row in rows:
        letters = [each for each in row.text[:_CHARACTERS_LOOKED_AT] if each.isalpha()]
        names = Counter(unicodedata.name(each, "unknown").split()[0] for each in letters)
        found[names.most_common(1)[0][0].capitalize() if names else "No letters"] += 1
    return {name: count / len(rows) for name, count in found.most_common()}
