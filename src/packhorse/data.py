"""The vocabulary: what a row is called at each station of its way.

    Request --tokenize--> Prompt --plan--> Batch --run--> Completion
       \\__________________ any station may answer ______ Failure

All are frozen: a row is never changed in place, the next station makes the next value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

RowId = str | int
"""The id of a row, as the input has it. A number that is no plain integer is a `NumberId`."""
Message = Mapping[str, Any]
FinishReason = Literal["stop", "length"]
MOST_LOG_PROBS = 20


class NumberId(str):
    """The id of a row that is a number, as it is written: 1.0, 1e3 and -0 stay what they are."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _integer_id(text: str) -> RowId:
    return NumberId(text) if text == "-0" else int(text)


id_decoder = json.JSONDecoder(parse_float=NumberId, parse_int=_integer_id)
"""Decodes JSON with numbers as ids keep them."""


def id_to_json(row_id: RowId) -> str:
    """An id as JSON: a number with exactly the digits it has in the input, or a string."""
    return str(row_id) if isinstance(row_id, NumberId) else json.dumps(row_id)


def id_from_json(text: str) -> RowId:
    """The id of which `id_to_json` made `text`."""
    row_id: RowId = id_decoder.decode(text)
    return row_id


def free_id(wanted: str, is_taken: Callable[[str], bool]) -> str:
    """An id that is not taken for a row that brings none: `wanted`, or with "-2" after it, ..."""
    candidates = (wanted if n == 1 else f"{wanted}-{n}" for n in count(1))
    return next(candidate for candidate in candidates if not is_taken(candidate))


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one row is decoded.

    Attributes:
        max_new_tokens: Maximum number of generated tokens, >= 1.
        temperature: 0 is greedy; otherwise logits are divided by it before the softmax.
        top_p: Nucleus sampling: the smallest set of tokens whose probability reaches it, in (0, 1].
        top_k: Sample among the k most probable tokens; 0 is no limit.
        seed: Makes sampling repeatable; None draws differently each time.
        stop: Generation ends before the first of these strings, which is not part of the text.
        top_log_probs: Return the log-probability of each token and of this many of the most
            probable tokens in its place, up to MAX_LOG_PROBS; None returns none. See TokenLogProbs.
    """

    max_new_tokens: int = field(default=256, metadata={"help": "generate at most N tokens per row"})
    temperature: float = field(
        default=0.0, metadata={"metavar": "T", "help": "sampling temperature; 0 is greedy"}
    )
    top_p: float = field(
        default=1.0,
        metadata={
            "metavar": "P",
            "help": "sample from the smallest set of tokens whose probability reaches P",
        },
    )
    top_k: int = field(
        default=0,
        metadata={"metavar": "K", "help": "sample from the K most probable tokens; 0 is no limit"},
    )
    seed: int | None = field(default=None, metadata={"help": "make sampling repeatable"})
    stop: tuple[str, ...] = field(
        default=(), metadata={"repeatable": True, "help": "end a row before this text; repeatable"}
    )
    top_log_probs: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken: also where only one may be drawn."""
        return self.temperature == 0.0 or self.top_k == 1


@dataclass(frozen=True, slots=True)
class Request:
    """One input row as it was read.

    index: position in the input, from 0, bad rows counted.
    id: the row's own id, or `line-N` (JSONL, text) or `row-N` (CSV, Parquet) when it has none.
    line: 1-based line (JSONL, text), first line of the record (CSV) or row number (Parquet), for
        messages.
    content: text, or chat messages.
    bare: the text is continued as it stands, a chat model's template is not put around it
        (OpenAI's /v1/completions).
    options: the row's own decoding options, already checked for type; names are SamplingParams's.
    key: identity across runs: a digest of id, content and options; equal rows without ids are
        told apart by their occurrence number.
    has_own_id: whether `id` is the row's own.
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
    """A row as an engine sees it: token ids and how to decode them.

    token_ids: the whole prompt, template included, unpadded (token ids of the model's vocabulary).
    decoding: max_new_tokens is final here; seed is the row's own, derived from the run's.
    """

    index: int
    token_ids: tuple[int, ...]
    decoding: SamplingParams


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that go to the engine together, longest first, in the order they were planned.

    shared_prefix: leading tokens that all prompts have in common and that an engine may compute
    once for this and for other batches (tokens); shorter than the shortest prompt. Prompts are
    whole all the same: an engine that cannot share computes them as they are.
    """

    prompts: tuple[Prompt, ...]
    shared_prefix: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Moments of one row, in seconds of `time.monotonic`.

    submitted: the engine took the row's batch.
    first_token: its first token was known; None where the engine cannot tell.
    finished: its last token was known.
    """

    submitted: float
    finished: float
    first_token: float | None = None


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """How probable a generated token was, and which others were.

    log_prob: natural logarithm of the softmax of the model's own logits over the whole vocabulary,
    as at temperature 1 without top_k and top_p, whatever the row's decoding does to them before it
    draws (what OpenAI tells). Logits are float32, the softmax is summed in float64.
    alternatives: (token id, log-probability) of the most probable tokens in this place, most
    probable first, of equals the smaller id; the generated token need not be among them.
    """

    token_id: int
    log_prob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What an engine generated for one row: ids without the end-of-sequence token.

    finish_reason: "stop" at an end token or a stop string, "length" at max_new_tokens.
    log_probs: one for each of `token_ids`; None where they were not asked for.
    """

    index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    timing: Timing
    log_probs: tuple[TokenLogProbs, ...] | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """How probable a row's continuations are to an engine that scores them.

    log_probs: natural logarithm of the probability of each continuation as a whole after the
    row's prompt, in the order they were given, each <= 0.
    """

    index: int
    log_probs: tuple[float, ...]
    timing: Timing


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion as text: what the row's owner gets.

    text: without special tokens, cut before the first stop string.
    prompt_tokens, completion_tokens: as computed by the engine (tokens).
    log_probs: one for each of `token_ids`; None where they were not asked for.
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

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that got no completion: data, not an exception.

    code: a short stable word (`malformed_json`, `prompt_too_long`, `engine_error`, ...).
    message: what is wrong and what to do, for a person.
    line: where the row stands in the input, when it is known.
    has_own_id: as of a Request.
    """

    index: int
    code: str
    message: str
    id: RowId = ""
    line: int | None = None
    key: str = ""
    has_own_id: bool = True
