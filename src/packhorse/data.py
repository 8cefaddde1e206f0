"""The data types of a row, from input to output.

    Request --tokenize--> Prompt --plan--> Batch --run--> EngineOutput --decode--> Completion
       \\_________________________ any step may end in a _________________________ Failure

All are frozen: no row is changed in place, each step creates the next value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from packhorse.sampling_params import SamplingParams as SamplingParams

RowId = str | int
"""The id of a row, as in the input. A number that is not a plain integer is a `NumberId`."""
Message = Mapping[str, Any]
FinishReason = Literal["stop", "length"]


class NumberId(str):
    """A numeric id in its original notation: 1.0, 1e3 and -0 are kept as written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _integer_id(text: str) -> RowId:
    return NumberId(text) if text == "-0" else int(text)


id_decoder = json.JSONDecoder(parse_float=NumberId, parse_int=_integer_id)
"""Decodes JSON with numbers as `NumberId`."""


def id_to_json(row_id: RowId) -> str:
    """Return an id as JSON: a number with exactly the digits of the input, or a string."""
    return str(row_id) if isinstance(row_id, NumberId) else json.dumps(row_id)


def id_from_json(text: str) -> RowId:
    """Return the id that `id_to_json` encoded as `text`."""
    row_id: RowId = id_decoder.decode(text)
    return row_id


def free_id(wanted: str, is_taken: Callable[[str], bool]) -> str:
    """Return the first unused id of `wanted`, `wanted`-2, `wanted`-3, ..."""
    candidates = (wanted if n == 1 else f"{wanted}-{n}" for n in count(1))
    return next(candidate for candidate in candidates if not is_taken(candidate))


@dataclass(frozen=True, slots=True)
class Request:
    """One input row as it was read.

    Attributes:
        index: Position in the input, from 0; bad rows count.
        id: The row's own id, else `line-N` (JSONL, text) or `row-N` (CSV, Parquet).
        line: 1-based line (JSONL, text), first line of the record (CSV) or row number (Parquet),
            for messages.
        content: Text, or chat messages.
        options: The row's own sampling parameters by name, already checked for type.
        key: Identity across runs: a digest of id, content and options; equal rows without ids
            are distinguished by their occurrence number.
        bare: Continue the text without applying the chat template (OpenAI's /v1/completions).
        has_own_id: Whether the input gives the row its id.
    """

    index: int
    id: RowId
    line: int
    content: str | tuple[Message, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    bare: bool = False
    has_own_id: bool = True


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of an engine for one row: token ids and sampling parameters.

    Attributes:
        token_ids: The whole prompt, template included, unpadded.
        decoding: Final sampling parameters; max_new_tokens fits the context, and the seed is
            derived from the run's seed and the row.
    """

    index: int
    token_ids: tuple[int, ...]
    decoding: SamplingParams


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that go to the engine together, longest first.

    Attributes:
        prompts: The prompts of the batch, shared prefix included, so that an engine that cannot
            share prefixes computes them as they are.
        shared_prefix: Number of leading tokens that all prompts have in common and that an engine
            may compute once for this and other batches; shorter than the shortest prompt.
    """

    prompts: tuple[Prompt, ...]
    shared_prefix: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one row, in seconds of `time.monotonic`.

    Attributes:
        submitted: When the engine took the row's batch.
        finished: When its last token was generated.
        first_token: When its first token was generated; None if the engine cannot tell.
    """

    submitted: float
    finished: float
    first_token: float | None = None


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """Log-probability of a generated token and of its alternatives.

    Attributes:
        log_prob: Natural logarithm of the softmax of the model's logits over the whole vocabulary,
            at temperature 1 without top_k and top_p, regardless of the row's sampling parameters
            (as OpenAI reports it). Logits are float32, the softmax is summed in float64.
        alternatives: (token id, log-probability) of the most probable tokens in this place, most
            probable first, ties by smaller id; need not contain the generated token.
    """

    token_id: int
    log_prob: float
    alternatives: tuple[tuple[int, float], ...] = ()
    rank: int = 0


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """The output of an engine for one row.

    Attributes:
        token_ids: Generated tokens without the end-of-sequence token.
        finish_reason: "stop" at an end token or a stop string, "length" at max_new_tokens.
        log_probs: One per token id; None if not requested.
        prompt_log_probs: One per token of the prompt but the first; None if not requested.
    """

    index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    timing: Timing
    log_probs: tuple[TokenLogProbs, ...] | None = None
    prompt_log_probs: tuple[TokenLogProbs, ...] | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of given continuations of a row.

    Attributes:
        log_probs: Natural logarithm of the probability of each whole continuation after the row's
            prompt, in the given order, each <= 0.
    """

    index: int
    log_probs: tuple[float, ...]
    timing: Timing


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of a row: its completion as text.

    Attributes:
        text: Generated text without special tokens, cut before the first stop string; after the
            prompt if `SamplingParams.echo` is set.
        prompt_tokens, completion_tokens: Numbers of tokens that the engine computed.
        log_probs: One per token id; None if not requested.
        prompt_token_ids: The prompt, if log-probabilities of its tokens were requested.
        prompt_log_probs: One per token of the prompt but the first; None if not requested.
        other_choices: The other completions of a row that asks for several, in their order.
    """

    index: int
    id: RowId
    key: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    timing: Timing
    log_probs: tuple[TokenLogProbs, ...] | None = None
    prompt_token_ids: tuple[int, ...] = ()
    prompt_log_probs: tuple[TokenLogProbs, ...] | None = None
    other_choices: tuple[Completion, ...] = ()

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids) + sum(len(each.token_ids) for each in self.other_choices)


@dataclass(frozen=True, slots=True)
class Failure:
    """A row without a completion: data, not an exception.

    Attributes:
        code: A short stable identifier (`malformed_json`, `prompt_too_long`, `engine_error`, ...).
        message: What is wrong and what to do.
        line: Position of the row in the input if known, see `Request.line`.
        has_own_id: Whether the input gives the row its id.
    """

    index: int
    code: str
    message: str
    id: RowId = ""
    line: int | None = None
    key: str = ""
    has_own_id: bool = True
