"""Rows that say the same: removed before splitting, so that no test row was seen in training.

Exact: equal after Unicode NFKC, case folding, and everything but letters and digits removed.
Near: the sets of their pieces of 8 characters have a cosine |A ∩ B| / sqrt(|A| |B|) of NEAR or
more; chains of near rows are one cluster. The first row of a cluster stays.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packhorse.assess.rows import LabelledRow

NEAR_COSINE = 0.8
NGRAM = 8
"""Characters of a piece."""
CHARACTERS_COMPARED = 20_000
_ROWS_AT_ONCE = 512
_BUCKETS = 2**22
_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class DistinctRows:
    """rows: one of each cluster. exact, near: rows removed. conflicting: clusters whose rows have
    different labels."""

    rows: tuple[LabelledRow, ...]
    exact: int
    near: int
    conflicting: int


def remove_duplicates(rows: Sequence[LabelledRow]) -> DistinctRows:
    """The rows without repetitions."""
    texts = [normalize_text(row.text) for row in rows]
    first: dict[str, int] = {}
    same = [first.setdefault(text, place) for place, text in enumerate(texts)]
    singles = sorted(set(same))
    clusters = _near([texts[place] for place in singles])
    cluster_of = dict(zip(singles, clusters, strict=True))
    kept: dict[int, int] = {}
    labels: dict[int, set[str]] = {}
    for place, row in enumerate(rows):
        cluster = cluster_of[same[place]]
        kept.setdefault(cluster, place)
        labels.setdefault(cluster, set()).add(row.label)
    return DistinctRows(
        rows=tuple(rows[place] for place in kept.values()),
        exact=len(rows) - len(singles),
        near=len(singles) - len(kept),
        conflicting=sum(len(found) > 1 for found in labels.values()),
    )


def normalize_text(text: str) -> str:
    """A text without case, punctuation and white space; itself where nothing would be left."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _NO_WORD.sub("", folded) or folded.strip()


def _near(texts: Sequence[str]) -> list[int]:
    """The cluster of each text. Time grows with the pieces that texts share."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import HashingVectorizer

    pieces = HashingVectorizer(
        analyzer="char",
        ngram_range=(NGRAM, NGRAM),
        n_features=_BUCKETS,
        binary=True,
        alternate_sign=False,
        lowercase=False,
        dtype=np.float32,
    )
    matrix: Any = pieces.transform([text[:CHARACTERS_COMPARED] for text in texts])
    turned = matrix.T.tocsc()
    left: list[Any] = []
    right: list[Any] = []
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        cosines = (matrix[start : start + _ROWS_AT_ONCE] @ turned).tocoo()
        close = cosines.data >= NEAR_COSINE - 1e-6
        left.append(cosines.row[close] + start)
        right.append(cosines.col[close])
    places = np.concatenate(left), np.concatenate(right)
    graph = coo_array((np.ones(len(places[0]), np.int8), places), (len(texts), len(texts)))
    return [int(cluster) for cluster in connected_components(graph, directed=False)[1]]
