"""Splits: parts that share nothing, classes in proportion, groups on one side."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelled import rows
from packhorse.assess.splits import FOLDS, REPEATS, make_folds, split
from packhorse.errors import InputError

COUNTS = st.lists(st.integers(4, 60), min_size=2, max_size=6)


def of_counts(counts: list[int]) -> list[tuple[str, str]]:
    return [
        (f"{label} {n}", f"label {label}")
        for label, count in enumerate(counts)
        for n in range(count)
    ]


@given(COUNTS, st.integers(0, 5))
def test_every_row_is_on_one_side_and_classes_are_in_proportion(
    counts: list[int], seed: int
) -> None:
    given_rows = rows(of_counts(counts))
    parts = split(given_rows, grouped=False, seed=seed)
    assert sorted(row.line for row in (*parts.train, *parts.test)) == [r.line for r in given_rows]
    assert parts.unseen == {}
    train, test = (Counter(row.label for row in part) for part in (parts.train, parts.test))
    share = len(parts.test) / len(given_rows)
    for label, count in Counter(row.label for row in given_rows).items():
        assert train[label] >= 3
        assert abs(test[label] - count * share) <= 1


@given(COUNTS, st.integers(0, 5))
def test_folds_judge_every_training_row_once_a_repeat(counts: list[int], seed: int) -> None:
    given_rows = rows(of_counts(counts))
    found = make_folds(given_rows, grouped=False, seed=seed)
    assert len(found) == REPEATS * min(FOLDS, min(counts))
    for repeat in range(REPEATS):
        judged = [place for fold in found if fold.repeat == repeat for place in fold.judge.tolist()]
        assert sorted(judged) == list(range(len(given_rows)))
    for fold in found:
        assert not set(fold.fit.tolist()) & set(fold.judge.tolist())


@given(st.integers(4, 12), st.integers(0, 5))
def test_a_group_is_never_split(groups: int, seed: int) -> None:
    pairs = of_counts([40, 40])
    named = [f"group {number % groups}" for number in range(len(pairs))]
    given_rows = rows(pairs, named)
    parts = split(given_rows, grouped=True, seed=seed)
    assert not {row.group for row in parts.train} & {row.group for row in parts.test}
    for fold in make_folds(parts.train, grouped=True, seed=seed):
        fit, judge = (
            {parts.train[place].group for place in part} for part in (fold.fit, fold.judge)
        )
        assert not fit & judge


def test_a_label_that_one_group_holds_is_left_out_and_counted() -> None:
    pairs = of_counts([40, 40]) + [(f"rare {number}", "rare") for number in range(6)]
    named = [f"group {number % 8}" for number in range(80)] + ["only"] * 6
    for seed in range(12):
        parts = split(rows(pairs, named), grouped=True, seed=seed)
        in_train = "rare" in {row.label for row in parts.train}
        assert parts.unseen == ({} if in_train else {"rare": 6})
        assert "rare" not in {row.label for row in parts.test}


def test_too_few_groups() -> None:
    pairs = of_counts([10, 10])
    with pytest.raises(InputError, match="has 2 groups"):
        split(rows(pairs, ["x", "y"] * 10), grouped=True, seed=0)


def test_groups_that_hold_all_of_a_label() -> None:
    pairs = of_counts([10, 10])
    named = ["zeros"] * 10 + [f"ones {number}" for number in range(10)]
    seen = set()
    for seed in range(10):
        try:
            split(rows(pairs, named), grouped=True, seed=seed)
        except InputError as error:
            seen.add(str(error))
    assert seen == {"the groups leave fewer than two labels to learn from, or none to test"}
