"""Log-probabilities from logits: of whole distributions, and of chosen tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packhorse.data import SamplingParams, TokenLogProbs

Logits = NDArray[np.float32]


def log_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the natural logs of the distributions of `logits`, over the last axis, in float64.

    The sum over a large vocabulary in float32 leaves errors of 1e-5 (torch) to 3e-5 (CTranslate2)
    in every log-probability: more than two float32 engines differ by.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def wanted_log_probs(
    chosen: Sequence[int | None],
    decodings: Sequence[SamplingParams],
    logits_of: Callable[[int], Logits],
) -> dict[int, TokenLogProbs]:
    """Return log-probabilities by row of a step, for rows that ask for them and have a token.

    Args:
        logits_of: logits [vocabulary] of a row; called for those rows only.
    """
    return {
        place: token_log_probs(logits_of(place), token_id, decoding.top_log_probs)
        for place, (token_id, decoding) in enumerate(zip(chosen, decodings, strict=True))
        if token_id is not None and decoding.top_log_probs is not None
    }


def token_log_probs(logits: Logits, token_id: int, count: int) -> TokenLogProbs:
    """Return the log-probability of a token and of the `count` most probable ones.

    Args:
        logits: [vocabulary], as the model computed them.
    """
    values = log_softmax(logits)
    alternatives = tuple((each, float(values[each])) for each in _most_probable(logits, count))
    return TokenLogProbs(token_id, float(values[token_id]), alternatives)


def prompt_token_log_probs(logits: Logits, token_id: int, count: int) -> TokenLogProbs:
    """Return `token_log_probs` of a token of a prompt, with its rank.

    Args:
        logits: [vocabulary], after the tokens before it.
    """
    found = token_log_probs(logits, token_id, count)
    return replace(found, rank=1 + int(np.count_nonzero(logits > logits[token_id])))


def _most_probable(logits: Logits, count: int) -> list[int]:
    """Return the ids of the `count` largest logits, largest first; smaller ids win ties."""
    count = min(count, len(logits))
    if not count:
        return []
    smallest = np.partition(logits, -count)[-count]
    ids = np.flatnonzero(logits >= smallest)
    order = np.lexsort((ids, -logits[ids]))
    found: list[int] = ids[order[:count]].tolist()
    return found
