"""Log-probabilities of given continuations, and logits of a given text.

The prefixes of all continuations (the empty one, one token, ...) form a tree, and the logits after
each of its nodes are needed. A row computes its prompt, which gives the logits of the root, then
path after path; of a path only what differs from the previous one. So every node is computed once
per row, or once per path if forks of the row compute its paths in parallel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Several
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from packhorse.data import Failure, Scores
from packhorse.engines.common.rows import NOT_NUMBERS, Row
from packhorse.engines.packed.network import Network
from packhorse.engines.packed.scheduler import Sequence
from packhorse.engines.packed.scratch import SAMPLED_AT_ONCE, Scratch, Step, empty_step
from packhorse.engines.packed.tiles import BLOCK
from packhorse.errors import EngineError

Ids = tuple[int, ...]
Found = tuple[Row, Ids, dict[int, float]]
"""A row, a node of its tree, and the log-probabilities of the tokens that follow there."""


class Scoring:
    """The continuations that one run scores.

    Attributes:
        paths: Nodes that are no prefix of another one, sorted, without the empty one.

    Args:
        continuations: Token ids; none is empty.
    """

    def __init__(self, continuations: Several[Several[int]]) -> None:
        self._wanted = [tuple(ids) for ids in continuations]
        self._following: dict[Ids, list[int]] = {}
        for ids in self._wanted:
            for length, token in enumerate(ids):
                self._following.setdefault(ids[:length], []).append(token)
        nodes = sorted(self._following)
        begins = {one for one, other in pairwise(nodes) if other[: len(one)] == one}
        self.paths = tuple(node for node in nodes if node and node not in begins)
        self._known: dict[int, dict[Ids, dict[int, float]]] = {}

    def require(self, vocabulary: int) -> None:
        """Raise EngineError for a token id outside the model's vocabulary."""
        ids = {token for tokens in self._following.values() for token in tokens}
        if strange := [token for token in sorted(ids) if not 0 <= token < vocabulary]:
            raise EngineError(
                f"token id {strange[0]} of a continuation is outside the vocabulary of "
                f"{vocabulary}",
                "encode continuations with the model's own tokenizer",
            )

    def log_probs(
        self, ending: Several[Sequence], step: Step, network: Network, scratch: Scratch
    ) -> list[Found]:
        """Return the log-probabilities that a step computed.

        Args:
            ending: The row of each of the step's `logit_tokens`.
            step: The step.
            network: The model that computed it.
            scratch: Buffers of the step.
        """
        found: list[Found] = []
        for first in range(0, len(ending), SAMPLED_AT_ONCE):
            some = slice(first, min(len(ending), first + SAMPLED_AT_ONCE))
            logits = torch.from_numpy(network.logits(some, scratch))
            positions = step.positions[step.logit_tokens[some]].tolist()
            for sequence, position, values in zip(ending[some], positions, logits, strict=True):
                node = sequence.path[: position + 1 - len(sequence.token_ids)]
                tokens, exact = self._following[node], values.double()
                chances = zip(tokens, (exact - exact.logsumexp(0))[tokens].tolist(), strict=True)
                found.append((sequence.row, node, dict(chances)))
        return found

    def results(self, found: Iterable[Found]) -> Iterator[Scores | Failure]:
        """Yield results of rows that are complete or have failed. Not thread-safe."""
        for row, node, values in found:
            if row.answered:
                continue
            known = self._known.setdefault(row.prompt.index, {})
            known[node] = values
            if not all(map(math.isfinite, values.values())):
                del self._known[row.prompt.index]
                yield row.fail("engine_error", NOT_NUMBERS)
            elif len(known) == len(self._following):
                del self._known[row.prompt.index]
                yield row.score([_total(ids, known) for ids in self._wanted])


def _total(ids: Ids, known: dict[Ids, dict[int, float]]) -> float:
    return sum(known[ids[:place]][token] for place, token in enumerate(ids))


def logits_after(
    network: Network,
    scratch: Scratch,
    token_ids: Several[int],
    count: int,
    at_once: int | None = None,
    is_long: bool | None = None,
) -> NDArray[np.float32]:
    """Return the logits [count, vocabulary] after each of the last `count` tokens.

    Overwrites the cache from its first block; it must be large enough and unused.

    Args:
        network: The model.
        scratch: Buffers of the calling thread.
        token_ids: Tokens of the text.
        count: Number of tokens whose logits are needed.
        at_once: Maximum number of tokens per step; None for as many as fit.
        is_long: Whether rotations are those beyond the trained length; None if the text is longer.
    """
    found = np.empty((count, network.arch.vocabulary), np.float32)
    block_tables = np.arange(-(-len(token_ids) // BLOCK), dtype=np.int32)[None]
    room = min(len(scratch.residual), len(scratch.last_residual))
    most = min(room, at_once or room)
    step = empty_step(most, most)
    wanted = len(token_ids) - count
    if is_long is None:
        is_long = 0 < network.arch.decoder.trained_length < len(token_ids)
    offset = network.rotation_offset if is_long else 0
    for first in range(0, len(token_ids), most):
        chunk = token_ids[first : first + most]
        step.num_tokens, step.num_spans = len(chunk), 1
        step.tokens[: len(chunk)] = chunk
        step.positions[: len(chunk)] = np.arange(first, first + len(chunk))
        step.rotation_rows[: len(chunk)] = step.positions[: len(chunk)] + offset
        step.table_rows[: len(chunk)] = 0
        step.spans[0] = (0, len(chunk), first, 0, 0)
        ends = np.arange(max(0, wanted - first), len(chunk))
        step.num_logits, step.num_best = len(ends), 0
        step.logit_tokens[: len(ends)] = ends
        network.run(step, block_tables, scratch)
        for start in range(0, len(ends), SAMPLED_AT_ONCE):
            rows = slice(start, min(len(ends), start + SAMPLED_AT_ONCE))
            to = first + int(ends[0]) + start - wanted
            found[to : to + rows.stop - start] = network.logits(rows, scratch)
    return found
