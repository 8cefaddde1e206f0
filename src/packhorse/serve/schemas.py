"""What requests look like, with a bound on everything; unknown fields are looked at later.

What pydantic refuses is a request that has the wrong shape. What has the right shape and cannot be
honoured is refused by `packhorse.openai_format.batch_lines`, by the same rules as lines of a batch
file.

Lists end at their first fault: noting one takes a kilobyte, and a body has room for a million.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from packhorse.data import MOST_LOG_PROBS

MOST_TEXT = 4 << 20
MOST_CHOICES = 8
MOST_STOPS = 16
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(max_length=MOST_TEXT)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]
Texts = (
    Text
    | Annotated[
        list[Text | int | TokenIds], Field(min_length=1, max_length=1 << 16, fail_fast=True)
    ]
)


class Part(BaseModel):
    """A piece of a message's content; text is all that can be run."""

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


class _Sampling(BaseModel):
    """Fields that chats and texts have in common; numbers are strict: "1" is no number."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    model: Name
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31, strict=True)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, strict=True)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=1 << 31, strict=True)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63, strict=True)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES, strict=True)] | None = None
    stream: Annotated[bool, Field(strict=True)] | None = None
    stream_options: StreamOptions | None = None


class ChatRequest(_Sampling):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1 << 16, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=1 << 31, strict=True)] | None = None
    logprobs: Annotated[bool, Field(strict=True)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOG_PROBS, strict=True)] | None = None


class CompletionRequest(_Sampling):
    prompt: Texts
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOG_PROBS, strict=True)] | None = None


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
    """What every answer of 4xx and 5xx holds."""

    error: ErrorDetail


class Usage(BaseModel):
    """Tokens; end tokens are not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class TopLogProb(BaseModel):
    """bytes: what the token writes in UTF-8, which may be a part of a character; `token` then shows
    them as escapes. null for a special token."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogProb(TopLogProb):
    top_logprobs: list[TopLogProb]


class ChatLogProbs(BaseModel):
    """One entry a token of the content. Natural logarithms, of the model's own softmax at
    temperature 1 over its whole vocabulary."""

    content: list[ChatTokenLogProb]
    refusal: None = None


class TextLogProbs(BaseModel):
    """Lists with one entry a token. text_offset: characters of `text` before the token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
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


class Embedding(BaseModel):
    """embedding: numbers, or float32 numbers in little-endian order as base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens, special ones included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ModelCard(BaseModel):
    """max_model_len: prompt and new tokens of one row at most, once the engine is loaded."""

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
