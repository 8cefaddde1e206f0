"""Split rows into training and test part, and the training part into folds."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from packhorse.assess.rows import LabelledRow
from packhorse.errors import InputError

Indices = npt.NDArray[np.int64]

TEST_SHARE = 0.25
MIN_TRAINING_ROWS = 3
FOLDS = 5
REPEATS = 2
MANY_CLASSES = 8
"""With more classes folds are not repeated: linear classifiers need one fit per class."""
_GROUP_FOLDS = round(1 / TEST_SHARE)


@dataclass(frozen=True, slots=True)
class Split:
    """The two parts.

    Attributes:
        unseen: counts by label of rows in neither part, because the training part has fewer than
            MIN_TRAINING_ROWS of the label (a group may hold all of them).
    """

    train: tuple[LabelledRow, ...]
    test: tuple[LabelledRow, ...]
    unseen: dict[str, int]


@dataclass(frozen=True, slots=True)
class Fold:
    """Indices of training rows to fit on and to evaluate on."""

    fit: Indices
    judge: Indices
    repeat: int


def split(rows: Sequence[LabelledRow], *, grouped: bool, seed: int) -> Split:
    """Put a quarter of the rows into the test part, stratified by label, no group on both sides.

    Raises:
        InputError: too few groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold, train_test_split

    labels, groups = [row.label for row in rows], [row.group for row in rows]
    indices = np.arange(len(rows))
    if grouped:
        count = len(set(groups))
        if count < _GROUP_FOLDS:
            raise InputError(
                f"the group column has {count} groups; a split needs at least {_GROUP_FOLDS}",
                "leave --group-column out, or name a column with more groups",
            )
        parts = StratifiedGroupKFold(_GROUP_FOLDS, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of classes smaller than the parts
            fit, test = next(parts.split(indices, labels, groups))
    else:
        share = max(TEST_SHARE, len(set(labels)) / len(rows))
        fit, test = train_test_split(indices, test_size=share, stratify=labels, random_state=seed)
    train = [rows[index] for index in sorted(fit)]
    known = Counter(row.label for row in train)
    enough = {label for label, count in known.items() if count >= MIN_TRAINING_ROWS}
    seen = [rows[index] for index in sorted(test) if rows[index].label in enough]
    if len(enough) < 2 or not seen:
        raise InputError(
            "the groups leave fewer than two labels to learn from, or none to test",
            "a group seems to hold all rows of a label: leave --group-column out or label more",
        )
    unseen = Counter(row.label for row in rows if row.label not in enough)
    return Split(tuple(row for row in train if row.label in enough), tuple(seen), dict(unseen))


def make_folds(rows: Sequence[LabelledRow], *, grouped: bool, seed: int) -> list[Fold]:
    """Return REPEATS times (once for many classes) FOLDS stratified folds.

    There are fewer if the smallest class has fewer rows; a fold fitted on fewer than two rows of a
    class is left out.

    Raises:
        InputError: no fold is left.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels = np.array([row.label for row in rows])
    groups = [row.group for row in rows]
    parts = min(FOLDS, min(Counter(labels.tolist()).values()), len(set(groups)))
    repeats = REPEATS if len(set(labels.tolist())) <= MANY_CLASSES else 1
    kind = StratifiedGroupKFold if grouped else StratifiedKFold
    found = []
    for repeat in range(repeats):
        cut = kind(parts, shuffle=True, random_state=seed + repeat)
        for fit, judge in cut.split(labels, labels, groups if grouped else None):
            counts = Counter(labels[fit].tolist())
            if min(counts.values()) > 1 and len(counts) > 1:
                found.append(Fold(fit, judge, repeat))
    if not found:
        raise InputError(
            "no part of the training rows has two rows of each label, so nothing can be tuned",
            "leave --group-column out or label more rows",
        )
    return found
