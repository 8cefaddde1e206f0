"""Logits of a text that is given, for measures of accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from packhorse.engines.packed.network import SAMPLED_AT_ONCE, Network, Scratch, empty_step
from packhorse.engines.packed.tiles import BLOCK


def logits_after(
    network: Network, scratch: Scratch, token_ids: Sequence[int], count: int
) -> NDArray[np.float32]:
    """Logits [count, vocabulary] of what follows each of the last `count` tokens.

    Uses the cache from its beginning, which must hold `token_ids` and nothing else.
    """
    found = np.empty((count, network.built.vocabulary), np.float32)
    tables = np.arange(-(-len(token_ids) // BLOCK), dtype=np.int32)[None]
    most = min(len(scratch.stream), len(scratch.last_stream))
    step = empty_step(most, most)
    wanted = len(token_ids) - count
    for first in range(0, len(token_ids), most):
        chunk = token_ids[first : first + most]
        step.count, step.span_count = len(chunk), 1
        step.tokens[: len(chunk)] = chunk
        step.positions[: len(chunk)] = np.arange(first, first + len(chunk))
        step.table_of[: len(chunk)] = 0
        step.spans[0] = (0, len(chunk), first, 0, 0)
        ends = np.arange(max(0, wanted - first), len(chunk))
        step.end_count = len(ends)
        step.ends[: len(ends)] = ends
        network.run(step, tables, scratch)
        for start in range(0, len(ends), SAMPLED_AT_ONCE):
            rows = slice(start, min(len(ends), start + SAMPLED_AT_ONCE))
            to = first + int(ends[0]) + start - wanted
            found[to : to + rows.stop - start] = network.logits(rows, scratch)
    return found
