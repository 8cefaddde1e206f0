"""The interface of an engine.

An engine pulls batches when it has room and yields each row when it finishes. The same interface
serves one batch at a time, several workers and continuous batching, with back-pressure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from packhorse.data import Batch, EngineOutput, Failure, Scores, TokenLogProbs

CostRule = Literal["padded", "min-prefix-prefill", "packed"]


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What planners, memory budgets and reports know about an engine.

    Attributes:
        name: Only for messages and reports.
        cost_rule: "padded": every row of a batch costs as much as the longest;
            "min-prefix-prefill": the length of the shortest prompt is computed at once for all
            rows, the rest token by token; "packed": a row costs its own tokens.
        device, compute_type: What runs, not what was requested.
        workers, threads: Batches in flight at once, and threads per worker.
        max_context: Maximum number of prompt and generated tokens of one row.
        model_bytes: Weights in memory (bytes).
        cache_bytes_per_token: Key-value cache per token (bytes).
        step_bytes_per_row: Additional working memory per row, mostly logits (bytes).
        cache_copies: Copies of the cache at its peak (2 if it grows by copying).
        preferred_batch_tokens: Tokens per batch above which this engine was measured to gain
            nothing.
        mixed_decoding: Rows of one batch may differ in sampling parameters; limits always may.
        shares_prefixes: `Batch.shared_prefix` is computed once, not once per row.
        runs_side_by_side: The engine may be loaded with several workers.
        max_num_seqs: Maximum number of rows computed at the same time, for an engine that rows
            join and leave at every step; 0 for one that runs batches as they are. Its cache holds
            `preferred_batch_tokens`, allocated once.
        gives_log_probs: The engine supports `SamplingParams.top_log_probs`; others are not given
            such rows.
        working_bytes: Additional memory for the steps of such an engine, independent of rows
            (bytes).
        max_prompt: Maximum number of prompt tokens that the engine computes correctly; 0 is no
            limit but the context.
        same_length_above: Prompts with more tokens share a batch only with prompts of the same
            length; 0 applies to every prompt, None to no prompt.
        separate_above: Prompts with more tokens never share a batch with shorter ones; None
            applies to no prompt.
        rows_alone: The engine computes one row at a time, regardless of batches.
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
        """Return the group of a prompt length; only prompts of one group share a batch."""
        if self.same_length_above is not None and prompt_tokens > self.same_length_above:
            return prompt_tokens
        return int(self.separate_above is not None and prompt_tokens > self.separate_above)

    @property
    def peak_bytes(self) -> int | None:
        """Peak memory of the engine besides the bare process: weights, whole cache, steps (bytes).

        None for an engine whose memory depends on its batches.
        """
        if not self.max_num_seqs:
            return None
        cache = self.preferred_batch_tokens * self.cache_bytes_per_token
        return self.model_bytes + cache + self.working_bytes


class TokenCallback(Protocol):
    """Called for every generated token of a row, from any thread, in order.

    `row` is the prompt's index. Returning True ends the row after this token, e.g. at a stop
    string, when the client disconnects, or when the run is stopped.
    """

    def __call__(self, row: int, token_id: int) -> bool: ...


@runtime_checkable
class LogProbsCallback(TokenCallback, Protocol):
    """A token callback that also receives log-probabilities.

    `take_log_probs` is called right before the callback is called for the same token, in the same
    thread, for rows that request log-probabilities.
    """

    def take_log_probs(self, row: int, token: TokenLogProbs) -> None: ...


class Engine(Protocol):
    """Runs batches of token ids; `tests/engines/test_conformance.py` tests the requirements.

    `run` yields one result per prompt of every batch, in any order. A row ended by `on_token` has
    finish reason "stop". A row that fails, or whose batch fails and cannot be split further, is a
    Failure; no other row is lost. Closing the iterator cancels rows in flight. `close` releases
    memory and may be called repeatedly.

    A batch without prompts means that there is nothing to add now: the engine yields what is ready,
    continues with the rows it has, and asks for the next batch again. A source that waits for rows
    while others are in flight yields such batches instead of blocking.
    """

    @property
    def capabilities(self) -> EngineCapabilities: ...

    def run(
        self, batches: Iterator[Batch], on_token: TokenCallback | None = None
    ) -> Iterator[EngineOutput | Failure]: ...

    def close(self) -> None: ...


@runtime_checkable
class Scorer(Protocol):
    """An engine that also scores given continuations.

    `score` yields Scores or a Failure once per prompt of every batch, in any order. A shared prefix
    and the prompt itself are computed once, independent of the number of continuations. Each
    continuation has at least one token id, and every prompt's max_new_tokens is at least the length
    of the longest. Scores do not depend on the batch of a prompt, up to the rounding of sums.
    """

    def score(
        self, batches: Iterator[Batch], continuations: Sequence[Sequence[int]]
    ) -> Iterator[Scores | Failure]: ...
