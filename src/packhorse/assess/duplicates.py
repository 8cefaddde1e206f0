"""Remove duplicate rows before splitting, so that no test row was seen in training.

Exact: equal after Unicode NFKC, case folding and removal of everything but letters and digits.
Near: the sets of character 8-grams have a cosine |A ∩ B| / sqrt(|A| |B|) of NEAR_COSINE or more;
connected near duplicates form one cluster. The first row of a cluster is kept.
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
"""Characters of an n-gram."""
CHARACTERS_COMPARED = 20_000
_ROWS_AT_ONCE = 512
_BUCKETS = 2**22
_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class DistinctRows:
    """One row of each cluster.

    Attributes:
        exact: exact duplicates removed.
        near: near duplicates removed.
        conflicting: clusters whose rows have different labels.
    """

    rows: tuple[LabelledRow, ...]
    exact: int
    near: int
    conflicting: int


def remove_duplicates(rows: Sequence[LabelledRow]) -> DistinctRows:
    """Return the rows without duplicates."""
    texts = [normalize_text(row.text) for row in rows]
    first: dict[str, int] = {}
    same = [first.setdefault(text, index) for index, text in enumerate(texts)]
    singles = sorted(set(same))
    clusters = _near([texts[index] for index in singles])
    cluster_of = dict(zip(singles, clusters, strict=True))
    kept: dict[int, int] = {}
    labels: dict[int, set[str]] = {}
    for index, row in enumerate(rows):
        cluster = cluster_of[same[index]]
        kept.setdefault(cluster, index)
        labels.setdefault(cluster, set()).add(row.label)
    return DistinctRows(
        rows=tuple(rows[index] for index in kept.values()),
        exact=len(rows) - len(singles),
        near=len(singles) - len(kept),
        conflicting=sum(len(found) > 1 for found in labels.values()),
    )


def normalize_text(text: str) -> str:
    """Return a text without case, punctuation and white space; the text if nothing is left."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _NO_WORD.sub("", folded) or folded.strip()


def _near(texts: Sequence[str]) -> list[int]:
    """Return the cluster of each text; time grows with the n-grams that texts share."""
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
    indices = np.concatenate(left), np.concatenate(right)
    graph = coo_array((np.ones(len(indices[0]), np.int8), indices), (len(texts), len(texts)))
    return [int(cluster) for cluster in connected_components(graph, directed=False)[1]]
