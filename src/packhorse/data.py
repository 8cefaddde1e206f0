"""The data types of a row, from input to output.

    Request --tokenize--> Prompt --plan--> Batch --run--> EngineOutput --decode--> Completion
       \\_________________________ any step may end in a _________________________ Failure

All are frozen: no row is changed in place, each step creates the next value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from packhorse.params.sampling_params import SamplingParams as SamplingParams

RowId = str | int
"""The id of a row, as in the input. A number that is not a plain integer is a `NumberId`."""
Message = Mapping[str, Any]
FinishReason = Literal["stop", "length", "tool_calls"]


class TokenIds(tuple[int, ...]):
    """A prompt that is given as token ids."""

    __slots__ = ()


Content = str | TokenIds | tuple[Message, ...]
"""What a row asks: text, token ids or chat messages."""


def as_messages(content: Content) -> tuple[Message, ...]:
    """Return what a row asks as chat messages: text is one message of the user.

    Raises:
        ValueError: For token ids.
    """
    if isinstance(content, str):
        return ({"role": "user", "content": content},)
    if isinstance(content, TokenIds):
        raise ValueError("token ids are no messages")
    return content


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
        content: Text, token ids or chat messages.
        options: The row's own sampling parameters by name, already checked for type.
        key: Identity across runs: a digest of id, content and options; equal rows without ids
            are distinguished by their occurrence number.
        bare: Continue the text without applying the chat template (OpenAI's /v1/completions).
        has_own_id: Whether the input gives the row its id.
        prompt_options: The row's own fields of PromptOptions by name, already checked for type.
    """

    index: int
    id: RowId
    line: int
    content: Content
    options: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    bare: bool = False
    has_own_id: bool = True
    prompt_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_chat(self) -> bool:
        """Whether the row is chat messages, not text or token ids."""
        return not isinstance(self.content, (str, TokenIds))


@dataclass(frozen=True, slots=True)
class ReasoningTokens:
    """Tokens between which a row reasons, and those that end its reasoning at a limit.

    Attributes:
        limit: Number of generated tokens after `start` that the model chooses itself; None for no
            limit.
        token_ids: Tokens that follow then, in place of the model's own.
        end: Tokens by which the model ends its reasoning; once generated, nothing is forced.
        start: Tokens by which reasoning begins, at the beginning of the output; () if the prompt
            has begun it.
    """

    limit: int | None
    token_ids: tuple[int, ...]
    end: tuple[int, ...]
    start: tuple[int, ...] = ()

    def answer_start(self, generated: Sequence[int]) -> int | None:
        """Return the number of tokens before the answer; None while the reasoning goes on.

        An answer begins at once if the first token is not `start`.
        """
        begin = len(self.start)
        if self.start and tuple(generated[:begin]) != self.start:
            return 0
        place = find_tokens(generated[begin:], self.end)
        return None if place < 0 else begin + place + len(self.end)

    def next(self, generated: Sequence[int]) -> int | None:
        """Return the token that must follow `generated`; None if the model chooses it."""
        if self.limit is None or len(generated) < self.limit:
            return None
        begin = 0
        if self.start:
            begin = find_tokens(generated[: _MAX_TOKENS_BEFORE_START + len(self.start)], self.start)
            if begin < 0:
                return None
            begin += len(self.start)
        due = begin + self.limit
        place = len(generated) - due
        if not 0 <= place < len(self.token_ids):
            return None
        is_ended = find_tokens(generated[begin:due], self.end) >= 0
        if is_ended or tuple(generated[due:]) != self.token_ids[:place]:
            return None
        return self.token_ids[place]


_MAX_TOKENS_BEFORE_START = 4
"""Tokens of white space that a model may write before it begins its reasoning."""


def find_tokens(token_ids: Sequence[int], part: Sequence[int]) -> int:
    """Return the place of the first occurrence of `part` in `token_ids`; -1 if there is none."""
    wanted = tuple(part)
    for place in range(len(token_ids) - len(wanted) + 1):
        if (
            token_ids[place] == wanted[0]
            and tuple(token_ids[place : place + len(wanted)]) == wanted
        ):
            return place
    return -1


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of an engine for one row: token ids and sampling parameters.

    Attributes:
        token_ids: The whole prompt, template included, unpadded.
        decoding: Final sampling parameters; max_new_tokens fits the context, and the seed is
            derived from the run's seed and the row.
        reasoning: Tokens of the row's reasoning, if it has a limit, which only engines that force
            tokens get, or if a structured output begins after it.
    """

    index: int
    token_ids: tuple[int, ...]
    decoding: SamplingParams
    reasoning: ReasoningTokens | None = None


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
class ToolCall:
    """A function that the model wants to be called. packhorse calls nothing.

    Attributes:
        id: Name of this call; a message with its result refers to it.
        name: Name of the function.
        arguments: Arguments as a JSON object.
    """

    id: str
    name: str
    arguments: str

    def to_json(self) -> dict[str, Any]:
        """Return the call as OpenAI's clients read it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


def parse_json_answer(text: str, finish_reason: str | None) -> tuple[Any, str | None]:
    """Return the JSON value of an answer, and None or why there is no value.

    A number that ends at the token limit may lack digits: it is truncated too.

    Returns:
        The value; "truncated" for an answer that ends at the token limit before its JSON does, or
            "not_json", for example if a stop string cut it.
    """
    is_limited = finish_reason == "length"
    try:
        value = json.loads(text, parse_int=_long_int, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None, "truncated" if is_limited else "not_json"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (None, "truncated") if is_limited and is_number else (value, None)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _long_int(digits: str) -> int | NumberId:
    """Return an integer of JSON; one of thousands of digits, which Python refuses, as its text."""
    try:
        return int(digits)
    except ValueError:
        return NumberId(digits)


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of a row: its completion as text.

    Attributes:
        text: Generated text without reasoning and special tokens, cut before the first stop string;
            after the prompt if `SamplingParams.echo` is set. Tool calls are part of it, as the
            model wrote them.
        prompt_tokens, completion_tokens: Numbers of tokens that the engine computed.
        log_probs: One per token id; None if not requested.
        prompt_token_ids: The prompt, if log-probabilities of its tokens were requested.
        prompt_log_probs: One per token of the prompt but the first; None if not requested.
        other_choices: The other completions of a row that asks for several, in their order.
        reasoning: What the model wrote between its tags of reasoning; None if nothing.
        reasoning_tokens: Number of tokens of reasoning and its tags; None for a model without tags.
        tool_calls: Functions to call, for rows with tools.
        content: `text` without tool calls; None if it is `text`.
        is_json: Whether the row asked for JSON (`SamplingParams.structured_outputs`).
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
    reasoning: str | None = None
    reasoning_tokens: int | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    content: str | None = None
    is_json: bool = False

    @property
    def parsed(self) -> Any:
        """The JSON value of the text; None if there is none, for which `parsed_error` is why."""
        return parse_json_answer(self.text, self.finish_reason)[0] if self.is_json else None

    @property
    def parsed_error(self) -> str | None:
        """Why `parsed` is no value of the text: "truncated", "not_json" or None."""
        return parse_json_answer(self.text, self.finish_reason)[1] if self.is_json else None

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
