"""Schemas of request bodies and of documents that the server sends; every size is bounded.

A body with the wrong shape is refused by pydantic. A body with the right shape that asks for
something unsupported is refused by `packhorse.openai_format`, by the rules of batch lines.

Options that are numbers or booleans are declared in `packhorse.openai_format.request_fields`.

Lists stop at their first error: recording one takes a kilobyte, and a body may hold a million.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model

from packhorse.openai_format.field_types import NumberRange
from packhorse.openai_format.request_fields import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    RESPONSE_FIELDS,
    STOP,
)

Model = TypeVar("Model", bound=BaseModel)
MAX_TEXT_CHARACTERS = 4 << 20
MAX_CHOICES = 8
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]
Texts = (
    Text
    | Annotated[
        list[Text | int | TokenIds], Field(min_length=1, max_length=1 << 16, fail_fast=True)
    ]
)


class Part(BaseModel):
    """A part of a message's content; only text is supported."""

    model_config = ConfigDict(extra="allow")
    type: Annotated[str, Field(max_length=64)]


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow")
    role: Annotated[str, Field(min_length=1, max_length=32)]
    content: Text | Annotated[list[Part], Field(max_length=256, fail_fast=True)] | None = None
    name: Annotated[str, Field(max_length=128)] | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")
    include_usage: bool | None = None


def _with_fields(
    fields: Mapping[str, NumberRange | type[bool]],
) -> Callable[[type[Model]], type[Model]]:
    """Return a class decorator that adds optional fields to a schema.

    Numbers and booleans are strict: "1" is neither.
    """

    def add(schema: type[Model]) -> type[Model]:
        added: Any = {name: (_type(kind) | None, None) for name, kind in fields.items()}
        return create_model(schema.__name__, __base__=schema, __module__=schema.__module__, **added)

    return add


def _type(kind: NumberRange | type[bool]) -> Any:
    if not isinstance(kind, NumberRange):
        return Annotated[kind, Field(strict=True)]
    above, least = (kind.minimum, None) if kind.excludes_minimum else (None, kind.minimum)
    return Annotated[kind.type, Field(strict=True, gt=above, ge=least, le=kind.maximum)]


class _GenerationRequest(BaseModel):
    """Fields that chat and text completions share."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    model: Name
    stop: Stop | Annotated[list[Stop], Field(max_length=STOP.max_count)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES, strict=True)] | None = None
    stream: Annotated[bool, Field(strict=True)] | None = None
    stream_options: StreamOptions | None = None


@_with_fields(CHAT_FIELDS)
class ChatRequest(_GenerationRequest):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1 << 16, fail_fast=True)]


@_with_fields(COMPLETION_FIELDS)
class CompletionRequest(_GenerationRequest):
    prompt: Texts


@_with_fields(RESPONSE_FIELDS)
class ResponsesRequest(BaseModel):
    """See `packhorse.openai_format.responses_api`."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    model: Name
    input: Text | Annotated[list[Any], Field(min_length=1, max_length=1 << 16)]
    instructions: Text | None = None
    stream: Annotated[bool, Field(strict=True)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=STOP.max_count)] | None = None


class EmbeddingRequest(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: Name
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, lt=1 << 31, strict=True)] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """Body of every response with status 4xx or 5xx."""

    error: ErrorDetail


class CompletionTokensDetails(BaseModel):
    """reasoning_tokens: those of the reasoning and its tags."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Token counts; end tokens are not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionTokensDetails | None = None


class CalledFunction(BaseModel):
    """arguments: a JSON object as text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(BaseModel):
    """content: null if the message only calls tools. reasoning_content: of a model that reasons."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class TopLogProb(BaseModel):
    """A token and its log-probability.

    bytes: the token in UTF-8, which may be a part of a character; `token` then shows them as
    escapes. null for a special token.
    """

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogProb(TopLogProb):
    top_logprobs: list[TopLogProb]


class ChatLogProbs(BaseModel):
    """One entry per token of the content.

    Natural logarithms of the model's own softmax at temperature 1 over its whole vocabulary.
    """

    content: list[ChatTokenLogProb]
    refusal: None = None


class TextLogProbs(BaseModel):
    """Lists with one entry per token. text_offset: characters of `text` before the token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: ChatLogProbs | None = None


class ChatResponse(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(BaseModel):
    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: TextLogProbs | None = None


class CompletionResponse(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ResponseObject(BaseModel):
    """A response. output: one message with one `output_text`."""

    model_config = ConfigDict(extra="allow")
    id: str
    object: Literal["response"] = "response"
    created_at: float
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any]


class Embedding(BaseModel):
    """One vector. embedding: numbers, or float32 in little-endian order as base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Token counts, special tokens included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ModelCard(BaseModel):
    """A served model. max_model_len: limit of prompt and new tokens of one row, once loaded."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "packhorse"
    max_model_len: int | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


Errors = dict[int | str, dict[str, Any]]
ERRORS: Errors = {"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}}
