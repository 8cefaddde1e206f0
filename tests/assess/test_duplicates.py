"""Repetitions: found, chained, and nothing else taken for one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelled import rows, texts
from packhorse.assess.duplicates import NEAR_COSINE, NGRAM, normalize_text, remove_duplicates

LONG = " ".join(f"word{number}" for number in range(60))


def kept(*given_texts: str) -> list[int]:
    """Lines of the rows that stay."""
    return [row.line for row in remove_duplicates(rows([(text, "a") for text in given_texts])).rows]


@pytest.mark.parametrize(
    ("texts_given", "lines"),
    [
        (("Buy now!", "buy   NOW", "ｂｕｙ now"), [1]),
        (("a b c", "a b d"), [1, 2]),
        (("!!!", "???"), [1, 2]),
        ((LONG, LONG + " one more thing"), [1]),
        ((LONG, LONG.replace("word7 ", "verb7 ")), [1]),
        ((LONG, LONG[: len(LONG) // 2]), [1, 2]),
        (("漢字の文章がここにあります", "漢字の文章がここにあります。"), [1]),
        (("",), [1]),
    ],
)
def test_repetitions(texts_given: tuple[str, ...], lines: list[int]) -> None:
    assert kept(*texts_given) == lines


def test_a_chain_of_near_rows_is_one_cluster() -> None:
    """The ends are not near each other, what lies between them joins them."""
    words = [f"word{number:03}" for number in range(130)]
    chain = [" ".join(words[start : start + 100]) for start in (0, 10, 20, 30)]
    assert kept(*chain) == [1]
    assert kept(chain[0], chain[3]) == [1, 2]


def test_conflicting_labels_are_counted_and_the_first_row_stays() -> None:
    found = remove_duplicates(rows([("same text", "a"), ("Same text.", "b"), ("other text", "b")]))
    assert [(row.text, row.label) for row in found.rows] == [
        ("same text", "a"),
        ("other text", "b"),
    ]
    assert (found.exact, found.near, found.conflicting) == (1, 0, 1)


@pytest.mark.slow
@given(st.lists(st.sampled_from([LONG, LONG + "!", "one", "two", "One.", LONG[:200]]), max_size=12))
def test_counts_reconcile(given_texts: list[str]) -> None:
    if not given_texts:
        return
    found = remove_duplicates(rows([(text, "a") for text in given_texts]))
    assert len(found.rows) + found.exact + found.near == len(given_texts)
    assert len(kept(*(row.text for row in found.rows))) == len(found.rows)


def test_near_is_what_the_sets_of_pieces_say() -> None:
    """Against the definition, with Python sets."""
    base = [text for text, _ in texts(12, learnable=False)]
    changed = [text[: len(text) - cut] for text in base for cut in (0, 8, 40, 50, 60)]

    def pieces(text: str) -> set[str]:
        text = normalize_text(text)
        return {text[at : at + NGRAM] for at in range(len(text) - NGRAM + 1)}

    sets = list(map(pieces, changed))
    cluster = list(range(len(sets)))
    for left in range(len(sets)):
        for right in range(left):
            a, b = sets[left], sets[right]
            if len(a & b) / math.sqrt(len(a) * len(b)) >= NEAR_COSINE:
                old, new = sorted((cluster[left], cluster[right]), reverse=True)
                cluster = [new if each == old else each for each in cluster]
    assert kept(*changed) == [place + 1 for place in sorted(set(cluster))]
    assert 12 < len(set(cluster)) < len(sets)
