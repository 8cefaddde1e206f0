"""The interface of an engine.

An engine *pulls* batches as it has room and *yields* each row as it finishes. One interface serves
static batching, several workers and continuous batching, and gives back-pressure.
`packhorse.engine_protocol.registry` lists the engines.
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
    """What planners, memory budgets and reports know about a loaded engine.

    Attributes:
        name: for reports only; no decision depends on it.
        cost_rule: "padded": every row of a batch costs as much as the longest.
            "min-prefix-prefill": as many tokens as the shortest prompt has are prefilled at once,
            the rest of longer prompts token by token. "packed": a row costs its own tokens.
        device, compute_type: what runs, not what was asked for.
        workers, threads: batches in flight at once, and threads of each.
        max_context: limit of prompt plus generated tokens of a row (tokens).
        model_bytes: weights in memory (bytes).
        cache_bytes_per_token: key and value cache per token (bytes).
        step_bytes_per_row: other working memory per row, mostly logits (bytes).
        cache_copies: copies of the cache at the peak (2 if it grows by copying).
        preferred_batch_tokens: batch tokens past which this engine gains no more (measured).
        mixed_decoding: rows of one batch may have different sampling settings; limits may always
            differ.
        shares_prefixes: `Batch.shared_prefix` is computed once, not once per row.
        runs_side_by_side: it can be loaded with several workers.
        max_num_seqs: limit of rows computed at the same time by a continuous engine, whose cache
            holds `preferred_batch_tokens` and is allocated once; 0 for static batches.
        working_bytes: other memory that the steps of a continuous engine need (bytes).
        max_prompt: limit of prompt tokens, for an engine that computes longer ones wrongly; 0 is
            the context.
        gives_log_probs: it supports `SamplingParams.top_log_probs`; other engines do not get rows
            that ask for it.
        sampling_fields: fields of `packhorse.params.sampling_params.ENGINE_FIELDS` that it
            supports; rows that set others fail before they reach it.
        forces_tokens: it supports limits in `Prompt.reasoning`; other engines do not get prompts
            that have one.
        same_length_above: prompts longer than this share a batch only with prompts of the same
            length (tokens); 0 means every prompt, None no prompt.
        separate_above: prompts longer than this never share a batch with shorter ones (tokens);
            None if that makes no difference.
        rows_alone: it computes one row at a time, whatever the batches.
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
    sampling_fields: tuple[str, ...] = ()
    forces_tokens: bool = False
    working_bytes: int = 0
    max_prompt: int = 0
    same_length_above: int | None = None
    separate_above: int | None = None
    rows_alone: bool = False

    def length_group(self, prompt_tokens: int) -> int:
        """Return the group of a prompt length (tokens); prompts of a batch have the same group."""
        if self.same_length_above is not None and prompt_tokens > self.same_length_above:
            return prompt_tokens
        return int(self.separate_above is not None and prompt_tokens > self.separate_above)

    @property
    def peak_bytes(self) -> int | None:
        """Peak memory of the engine beside the bare process (bytes): weights, cache, steps. None
        for an engine whose peak depends on its batches."""
        if not self.max_num_seqs:
            return None
        cache = self.preferred_batch_tokens * self.cache_bytes_per_token
        return self.model_bytes + cache + self.working_bytes


class TokenCallback(Protocol):
    """Callback for every generated token of a row, called from any thread, in order.

    `row` is the prompt's index. Returning True ends that row after this token: a stop string is
    complete, the client disconnected, or the run is being stopped.
    """

    def __call__(self, row: int, token_id: int) -> bool: ...


@runtime_checkable
class LogProbsCallback(TokenCallback, Protocol):
    """A token callback that also receives log-probabilities.

    `take_log_probs` is called right before the callback itself for the same token, in the same
    thread, for rows that ask for log-probabilities.
    """

    def take_log_probs(self, row: int, token: TokenLogProbs) -> None: ...


class Engine(Protocol):
    """Run batches of token ids. `tests/engines/test_conformance.py` tests every engine.

    `run` gives every prompt of every batch exactly one result, in any order. A row ended by
    `on_token` has finish reason "stop". A row that fails, or whose batch fails and cannot be split
    further, is a Failure; no other row is affected. Closing the iterator cancels what is in flight.
    `close` releases memory and may be repeated.

    A batch without prompts means that no rows are available yet: the engine yields finished rows,
    continues with the rows it has and asks again. A source yields such batches instead of blocking
    while other rows are in flight.
    """

    @property
    def capabilities(self) -> EngineCapabilities: ...

    def run(
        self, batches: Iterator[Batch], on_token: TokenCallback | None = None
    ) -> Iterator[EngineOutput | Failure]: ...

    def close(self) -> None: ...


@runtime_checkable
class Scorer(Protocol):
    """Optional interface of an engine: log-probabilities of given continuations.

    `score` gives every prompt of every batch its Scores, or a Failure, exactly once, in any order.
    A shared prefix and the prompt itself are computed once, whatever the number of continuations.
    Scores do not depend on a prompt's batch, up to the rounding of sums.

    Args:
        continuations: token ids, none empty; max_new_tokens of every prompt is at least the length
            of the longest.
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
