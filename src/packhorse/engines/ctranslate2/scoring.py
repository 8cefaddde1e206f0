"""Log-probabilities of continuations after a prompt, in a CTranslate2 generator.

The library returns logits of generated tokens, not of prompt tokens. There are two methods:
- by path: the prompt is the static prompt of one row per continuation that is no prefix of
  another; all tokens but the last are forced one by one. The prompt is computed once.
- by node: each prefix of a continuation (the empty one, one token, ...) follows the prompt in a
  separate row, and one token is generated. The shared prefix of the prompts is the static prompt,
  computed once for all prompts; the rest of a prompt is computed once per node.
The method that computes fewer tokens is used. `score_batch` of the library computes the whole
prompt for each continuation and a softmax over the vocabulary at each of its tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ctranslate2
import numpy as np
import numpy.typing as npt

from packhorse.data import Batch, Failure, Scores
from packhorse.engine_protocol import EngineCapabilities
from packhorse.engines.common.log_probs import log_softmax
from packhorse.engines.common.rows import NOT_NUMBERS, Row, answer
from packhorse.engines.ctranslate2.loading import await_idle

Ids = tuple[int, ...]
Vector = npt.NDArray[np.float64]

ROW_TOKENS = 4096
"""Limit of prompt tokens in memory at a time, counted once per path."""


@dataclass(frozen=True, slots=True)
class ContinuationScoring:
    """One pass over batches; each worker scores one prompt at a time.

    Attributes:
        names: tokens by id.
        continuations: token ids, none empty.
        may_keep: whether the library may keep the state of a prefix until it is unloaded.
        refuse: returns the failure of a row that cannot be scored.
        window: positions that can be computed at once, 0 for all.
    """

    generator: Any
    names: Sequence[str]
    continuations: Sequence[Sequence[int]]
    may_keep: Callable[[Ids], bool]
    refuse: Callable[[Row], Failure | None]
    window: int
    capabilities: EngineCapabilities

    def scores(self, batches: Iterator[Batch]) -> Iterator[Scores | Failure]:
        """See `packhorse.engine_protocol.Scorer`."""
        workers = self.capabilities.workers
        executor = ThreadPoolExecutor(workers, thread_name_prefix="ctranslate2")
        underway: deque[Future[Scores | Failure]] = deque()
        try:
            for batch in batches:
                for prompt in batch.prompts:
                    row = Row(prompt)
                    underway.append(executor.submit(self._result, row, batch.shared_prefix))
                    while len(underway) > 2 * workers:
                        yield underway.popleft().result()
            while underway:
                yield underway.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)
            await_idle(self.generator)

    def _result(self, row: Row, shared: int) -> Scores | Failure:
        refusal = self.refuse(row)
        if refusal is not None:
            return refusal

        def scored(rows: list[Row]) -> Iterator[Scores | Failure]:
            values = self.log_probs(row.prompt.token_ids, shared)
            numbers = all(map(math.isfinite, values))
            yield row.score(values) if numbers else row.fail("engine_error", NOT_NUMBERS)

        (result,) = answer([row], scored)
        return result

    def log_probs(self, prompt: Ids, shared: int = 0) -> list[float]:
        """Return the natural log p(continuation | prompt) of each continuation.

        Args:
            shared: number of leading tokens that other prompts have too.
        """
        wanted = [tuple(ids) for ids in self.continuations]
        nodes = list(dict.fromkeys(ids[:length] for ids in wanted for length in range(len(ids))))
        longest = len(prompt) + max(map(len, nodes))
        fits = not self.window or longest <= self.window
        if fits and shared and len(nodes) * (len(prompt) - shared) < len(prompt):
            after = self._by_node(prompt, nodes, shared)
        else:
            after = self._by_path(prompt, _paths(nodes))
        return [
            sum(float(after[ids[:place]][token]) for place, token in enumerate(ids))
            for ids in wanted
        ]

    def _by_path(self, prompt: Ids, paths: Sequence[Ids]) -> Mapping[Ids, Vector]:
        options: dict[str, Any] = {"include_prompt_in_result": True}
        if len(prompt) > 1:
            options |= {"static_prompt": self._named(prompt[:-1]), "cache_static_prompt": False}
        found: dict[Ids, Vector] = {}
        at_once = max(1, ROW_TOKENS // len(prompt))
        for start in range(0, len(paths), at_once):
            group = paths[start : start + at_once]
            rows = [(prompt[-1], *path) for path in group]
            for path, steps in zip(group, self._logits(rows, options), strict=True):
                for length in range(len(path) + 1):
                    if path[:length] not in found:
                        found[path[:length]] = _log_probs(steps[length])
        return found

    def _by_node(self, prompt: Ids, nodes: Sequence[Ids], shared: int) -> Mapping[Ids, Vector]:
        options = {
            "include_prompt_in_result": False,
            "static_prompt": self._named(prompt[:shared]),
            "cache_static_prompt": self.may_keep(prompt[:shared]),
        }
        found: dict[Ids, Vector] = {}
        for length in dict.fromkeys(map(len, nodes)):  # rows of one length: none is forced
            alike = [node for node in nodes if len(node) == length]
            rows = [(*prompt[shared:], *node) for node in alike]
            for node, steps in zip(alike, self._logits(rows, options, steps=1), strict=True):
                found[node] = _log_probs(steps[0])
        return found

    def _logits(
        self, rows: Sequence[Ids], options: Mapping[str, Any], steps: int | None = None
    ) -> list[Any]:
        """Return the logits of each step of each row, in the library's type.

        Args:
            steps: None is the length of the longest row.
        """
        results = self.generator.generate_batch(
            [self._named(row) for row in rows],
            max_length=steps or max(map(len, rows)),
            return_logits_vocab=True,
            sampling_topk=1,
            **options,
        )
        return [result.logits[0] for result in results]

    def _named(self, token_ids: Ids) -> list[str]:
        return [self.names[token] for token in token_ids]


def _paths(nodes: Iterable[Ids]) -> list[Ids]:
    """Return the nodes that are no prefix of another."""
    known = list(nodes)
    return [
        node
        for node in known
        if not any(len(other) > len(node) and other[: len(node)] == node for other in known)
    ]


def _log_probs(logits: Any) -> Vector:
    on_cpu = logits.to_device(ctranslate2.Device.cpu).to(ctranslate2.DataType.float32)
    return log_softmax(np.array(on_cpu).reshape(-1))
