"""The contract of an engine.

An engine *pulls* batches as it has room and *yields* each row as it finishes. One contract for one
batch at a time, for several workers and for continuous batching; back-pressure comes with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from packhorse.data import Batch, EngineOutput, Failure, Scores, TokenLogProbs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CostRule = Literal["padded", "min-prefix-prefill", "packed"]


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What planners, memory budgets and reports may know of an engine; nobody asks its name.

    name: for people and reports only.
    cost_rule: "padded": every row of a batch costs as much as the longest; "min-prefix-prefill":
    the
        shortest prompt's length is computed at once for all, what is longer token by token;
        "packed": a row costs its own tokens.
    device, compute_type: what really runs, not what was asked for.
    workers, threads: batches in flight at once, and threads of each.
    max_context: prompt and generated tokens of one row at most (tokens).
    model_bytes: weights in memory (bytes).
    cache_bytes_per_token: key and value cache of one token (bytes).
    step_bytes_per_row: working memory a row needs besides, logits for the most part (bytes).
    cache_copies: how many times the cache may exist at its peak (2 where it grows by copying).
    preferred_batch_tokens: batch tokens past which this engine was measured to gain no more.
    mixed_decoding: rows of one batch may differ in how they sample; limits may always differ.
    shares_prefixes: `Batch.shared_prefix` is computed once, not once a row.
    runs_side_by_side: it may be loaded with several workers.
    max_num_seqs: rows it computes at the same time at most, whatever batches they came in, for an
        engine that rows join and leave at every step; 0 for one that takes batches as they are.
        Its cache holds `preferred_batch_tokens`, allocated once.
    working_bytes: what steps of such an engine need besides, whatever the rows (bytes).
    max_prompt: tokens of a prompt at most, for an engine that computes longer ones wrongly; 0 for
        no bound but the context.
    gives_log_probs: it honours `SamplingParams.top_log_probs`; any other is not given such rows.
    same_length_above: prompts longer than this share a batch only with prompts of the same length
        (tokens); 0 holds for every prompt, None for no prompt.
    separate_above: prompts longer than this never share a batch with shorter ones (tokens); None
        where that makes no difference.
    rows_alone: it computes one row at a time, whatever batches it is given.
    """

    name: str
    cost_rule: CostRule
    device: str
    compute_type: str
    workers: int
    threads: int
    max_context: int
    model_bytes: int
    cache_bytes_per_token: int
    step_bytes_per_row: int = 0
    cache_copies: int = 1
    preferred_batch_tokens: int = 4096
    mixed_decoding: bool = True
    shares_prefixes: bool = False
    runs_side_by_side: bool = False
    max_num_seqs: int = 0
    gives_log_probs: bool = False
    working_bytes: int = 0
    max_prompt: int = 0
    same_length_above: int | None = None
    separate_above: int | None = None
    rows_alone: bool = False

    def length_group(self, prompt_tokens: int) -> int:
        """A number that prompts of one batch have in common, by their length (tokens)."""
        if self.same_length_above is not None and prompt_tokens > self.same_length_above:
            return prompt_tokens
        return int(self.separate_above is not None and prompt_tokens > self.separate_above)

    @property
    def peak_bytes(self) -> int | None:
        """Most memory the engine takes while it runs, beside the bare process (bytes): weights,
        the whole cache, steps. None for an engine whose batches decide."""
        if not self.max_num_seqs:
            return None
        cache = self.preferred_batch_tokens * self.cache_bytes_per_token
        return self.model_bytes + cache + self.working_bytes


class TokenCallback(Protocol):
    """Called for every generated token of a row, from any thread, in order.

    `row` is the prompt's index. Returning True ends that row after this token: a stop string was
    completed, a client left, or the run is being stopped.
    """

    def __call__(self, row: int, token_id: int) -> bool: ...


@runtime_checkable
class LogProbsCallback(TokenCallback, Protocol):
    """A watch that wants log-probabilities as they come.

    `take_log_probs` is called right before the watch is called for the same token, in the same
    thread, of rows that ask for them.
    """

    def take_log_probs(self, row: int, token: TokenLogProbs) -> None: ...


class Engine(Protocol):
    """Runs batches of token ids. See `tests/engines/test_conformance.py` for what it must keep.

    `run` answers every prompt of every batch exactly once, in any order. A row ended by `on_token`
    has finish reason "stop". A row that fails, or whose batch fails and cannot be split further,
    is a Failure; nothing else is lost. Closing the iterator cancels what is in flight. Both
    methods may be called once the engine is loaded; `close` releases memory and may be repeated.

    A batch without prompts says that there is nothing to add for now: the engine yields what is
    ready, goes on with what it has and asks again. A source that waits for its rows while others
    are under way gives these instead of blocking.
    """

    @property
    def capabilities(self) -> EngineCapabilities: ...

    def run(
        self, batches: Iterator[Batch], on_token: TokenCallback | None = None
    ) -> Iterator[EngineOutput | Failure]: ...

    def close(self) -> None: ...


@runtime_checkable
class Scorer(Protocol):
    """What an engine may be besides: it tells how probable given continuations are.

    `score` gives every prompt of every batch its Scores, or a Failure, exactly once, in any order;
    a prompt's shared prefix and the prompt itself are computed once, whatever the number of
    continuations. continuations: token ids, at least one each; every prompt's max_new_tokens is at
    least the longest. Scores do not depend on a prompt's batch, up to the rounding of sums.
    """

    def score(
        self, batches: Iterator[Batch], continuations: Sequence[Sequence[int]]
    ) -> Iterator[Scores | Failure]: ...


@runtime_checkable
class LogitsProvider(Protocol):
    """Optional interface of an engine: logits of a given text, to compare models on it."""

    @property
    def capabilities(self) -> EngineCapabilities: ...

    def logits_after(self, token_ids: Sequence[int], count: int) -> NDArray[np.float32]:
        """Return the logits [count, vocabulary] after each of the last `count` of `token_ids`.

        The text is computed in one pass, alone. Must not be called while `run` or `score` is
        being iterated.

        Raises:
            EngineError: the engine is closed, or computes a text of this length wrongly.
        """
        ...

    def close(self) -> None: ...
