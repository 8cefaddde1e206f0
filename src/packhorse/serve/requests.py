"""Parse request bodies into rows: the rules of batch lines, plus streaming and several choices."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from packhorse.data import Content, Message, Request, TokenIds
from packhorse.inputs.rows import LONE_SURROGATE, NESTED_TOO_DEEPLY, canonical_json
from packhorse.openai_format.batch_lines import read_body
from packhorse.openai_format.messages import read_messages
from packhorse.openai_format.prompt_fields import read_prompt_options
from packhorse.openai_format.request_fields import read_request_options
from packhorse.openai_format.row_errors import RowError
from packhorse.serve.errors import APIError
from packhorse.serve.schemas import ChatRequest, CompletionRequest, EmbeddingRequest

_LIVE_FIELDS = {"stream", "stream_options"}
"""Fields that batch lines do not support."""


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A validated request.

    Attributes:
        contents: One chat, or one or more text prompts.
        options: Options of the request, by the names of SamplingParams.
        is_stream: Whether the completion is streamed.
        include_usage: Whether the stream ends with a chunk of token counts.
        is_bare: Whether text prompts are run without a chat template.
        date: Local time for chat templates; None is the clock's.
        prompt_options: Options of the request, by the names of PromptOptions.
        key: What identifies the request; ids of tool calls are digests of it.
    """

    contents: tuple[Content, ...]
    options: Mapping[str, Any]
    is_stream: bool
    include_usage: bool
    is_bare: bool = True
    date: datetime | None = None
    prompt_options: Mapping[str, Any] = field(default_factory=dict)
    key: str = field(default_factory=lambda: secrets.token_hex(12))

    def requests(self) -> list[Request]:
        return [
            Request(
                index,
                index,
                0,
                content,
                self.options,
                bare=self.is_bare,
                prompt_options=self.prompt_options,
            )
            for index, content in enumerate(self.contents)
        ]


def read_chat(body: ChatRequest, max_messages: int) -> ParsedRequest:
    """Parse a chat completion request.

    Raises:
        APIError: For too many messages, messages that are not valid, or unsupported options.
    """
    fields = _read_body("/v1/chat/completions", body)
    messages = read_chat_messages(fields["messages"], max_messages)
    try:
        prompt_options = read_prompt_options(fields)
    except RowError as error:
        raise APIError(400, error.code, str(error)) from None
    check_json(prompt_options)
    return replace(_parsed(body, (messages,), fields), prompt_options=prompt_options, is_bare=False)


def read_chat_messages(
    given: list[Any], max_messages: int, param: str = "messages"
) -> tuple[Message, ...]:
    """Return the messages of a chat.

    Args:
        given: Messages as they were sent.
        max_messages: Their limit.
        param: The field of the request that they are in.

    Raises:
        APIError: For too many messages, or messages that are not valid.
    """
    if len(given) > max_messages:
        message = f"at most {max_messages} messages"
        raise APIError(400, "too_many_messages", message, param=param)
    try:
        messages = read_messages(given)
    except RowError as error:
        raise APIError(400, error.code, str(error), param=param) from None
    check_json(messages, param)
    return messages


def check_json(value: Any, param: str | None = None) -> None:
    """Raise APIError for lone surrogates and values nested too deeply."""
    try:
        canonical_json(value).encode()
    except UnicodeEncodeError:
        raise APIError(400, "invalid_unicode", LONE_SURROGATE, param=param) from None
    except RecursionError:
        raise APIError(400, "invalid_request", NESTED_TOO_DEEPLY, param=param) from None


def read_completion(body: CompletionRequest, max_prompts: int) -> ParsedRequest:
    """Parse a text completion request.

    Raises:
        APIError: For too many prompts, prompts that are blank or not text, or unsupported options.
    """
    prompts: list[Any] = [body.prompt] if isinstance(body.prompt, str) else list(body.prompt)
    if isinstance(prompts[0], int):
        prompts = [prompts]
    if len(prompts) > max_prompts:
        raise APIError(400, "too_many_prompts", f"at most {max_prompts} prompts", param="prompt")
    contents: list[Content] = []
    for prompt in prompts:
        if isinstance(prompt, str) and prompt.strip():
            contents.append(prompt)
        elif isinstance(prompt, list) and prompt and all(isinstance(each, int) for each in prompt):
            contents.append(TokenIds(prompt))
        elif prompt in ("", []) or isinstance(prompt, str):
            message = "a prompt is blank; give it text or token ids"
            raise APIError(400, "empty_prompt", message, param="prompt")
        else:
            message = "a prompt is text or a list of token ids; lists of prompts may hold both"
            raise APIError(400, "unsupported_prompt", message, param="prompt")
    fields = _read_body("/v1/completions", body)
    return _parsed(body, tuple(contents), fields)


def read_texts(body: EmbeddingRequest, model: str) -> list[str]:
    """Return the texts of an embedding request.

    Args:
        body: The request.
        model: Name of the embedding model.

    Raises:
        APIError: For another model, tokens instead of text, or unknown fields.
    """
    if body.model != model:
        message = f"the embedding model served here is {model!r}"
        raise APIError(404, "model_not_found", message, param="model")
    for name in body.model_extra or ():
        message = f"{name!r:.64} is not supported; leave it out"
        raise APIError(400, "unsupported_option", message, param=name[:64])
    inputs = [body.input] if isinstance(body.input, str) else body.input
    texts = [text for text in inputs if isinstance(text, str)]
    if len(texts) < len(inputs):
        message = (
            "an input is text, not tokens: they would be of another model's vocabulary (in "
            "LangChain: check_embedding_ctx_length=False)"
        )
        raise APIError(400, "unsupported_input", message, param="input")
    return texts


def _read_body(url: str, body: ChatRequest | CompletionRequest) -> dict[str, Any]:
    fields = body.model_dump(exclude_unset=True, exclude=_LIVE_FIELDS)
    try:
        return read_body({"url": url, "body": fields})
    except RowError as error:
        raise APIError(400, error.code, str(error)) from None


def _parsed(
    body: ChatRequest | CompletionRequest,
    contents: tuple[Content, ...],
    fields: Mapping[str, Any],
) -> ParsedRequest:
    try:
        options = read_request_options(fields, is_chat=isinstance(body, ChatRequest))
    except RowError as error:
        raise APIError(400, error.code, str(error)) from None
    is_stream = bool(body.stream)
    if body.stream_options is not None and not is_stream:
        raise APIError(
            400, "bad_option", "stream_options needs stream: true", param="stream_options"
        )
    if is_stream and options.get("prompt_log_probs") is not None:
        message = "log-probabilities of the prompt are not streamed; leave out stream"
        raise APIError(400, "bad_option", message, param="stream")
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    return ParsedRequest(contents, options, is_stream, include_usage)
