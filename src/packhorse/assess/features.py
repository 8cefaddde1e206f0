"""TF-IDF features of word and character n-grams for the classic contestants.

Counting n-grams takes most of the time and does not depend on other texts; selection and weights
do. `NgramCounts` counts once and gives, for each set of fitted rows, exactly the features of a
fresh `make_vectorizer` fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from packhorse.assess.splits import Indices

if TYPE_CHECKING:
    from sklearn.pipeline import FeatureUnion

_WORDS: dict[str, Any] = {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}
_CHARACTERS: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (2, 5)}
_WEIGHTS: dict[str, Any] = {"sublinear_tf": True}
_MANY_ROWS = 200


def min_document_frequency(rows: int) -> int:
    """Return in how many fitted rows an n-gram must occur: 2 if there are many rows, else 1."""
    return 2 if rows >= _MANY_ROWS else 1


def make_vectorizer(rows: int) -> FeatureUnion:
    """Return an unfitted vectorizer for a fit on `rows` rows.

    Word 1- and 2-grams and character 2- to 5-grams within word boundaries, each scaled to length 1.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    common = {**_WEIGHTS, "min_df": min_document_frequency(rows), "dtype": np.float32}
    return FeatureUnion(
        [
            ("words", TfidfVectorizer(**_WORDS, **common)),
            ("characters", TfidfVectorizer(**_CHARACTERS, **common)),
        ]
    )


class NgramCounts:
    """N-gram counts of texts, which are numbered in their order."""

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        kinds = (_WORDS, _CHARACTERS)
        self._counts: list[Any] = [
            CountVectorizer(**kind, dtype=np.float32).fit_transform(texts).tocsr() for kind in kinds
        ]

    def compute_tfidf(self, fit: Indices, *others: Indices) -> list[Any]:
        """Return sparse float32 features (rows, n-grams) of the fitted rows and of each of the
        others.
        """
        parts: list[list[Any]] = [[] for _ in range(1 + len(others))]
        for counts in self._counts:
            for part, block in zip(parts, self._weighted(counts, fit, others), strict=True):
                part.append(block)
        from scipy.sparse import hstack

        return [hstack(part, format="csr") for part in parts]

    def _weighted(self, counts: Any, fit: Indices, others: Sequence[Indices]) -> list[Any]:
        from sklearn.feature_extraction.text import TfidfTransformer

        fitted = counts[fit]
        standing_in = np.asarray(fitted.getnnz(axis=0)).ravel()
        kept = np.flatnonzero(standing_in >= min_document_frequency(len(fit)))
        weigh = TfidfTransformer(**_WEIGHTS)
        first = weigh.fit_transform(fitted[:, kept])
        return [first, *(weigh.transform(counts[other][:, kept]) for other in others)]
