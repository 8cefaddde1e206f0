"""From a request's body to rows: the same rules as for lines of a batch file, and what only a live
request can ask for (streaming, several choices)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from packhorse.data import Message, Request, SamplingParams
from packhorse.inference.generation import derived_seed
from packhorse.inputs.rows import NO_CHARACTER, TOO_DEEP, canonical_json
from packhorse.openai_format.batch_lines import TOP_LOG_PROBS, unwrap
from packhorse.openai_format.messages import read_messages
from packhorse.openai_format.request_options import read_options
from packhorse.openai_format.row_errors import RowError
from packhorse.serve.errors import APIError
from packhorse.serve.schemas import ChatRequest, CompletionRequest, EmbeddingRequest

_LIVE_FIELDS = ("n", "stream", "stream_options")


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """What a request wants.

    contents: a chat, or one or more texts to be continued as they stand. options: decoding options
    it brings, by SamplingParams's names. choices: of each content. include_usage: a last chunk with
    the tokens used ends the stream. is_bare: texts are continued as they stand. date: the local
    time that chat templates write; None is the clock's.
    """

    contents: tuple[str | tuple[Message, ...], ...]
    options: Mapping[str, Any]
    choices: int
    is_stream: bool
    include_usage: bool
    is_bare: bool = True
    date: datetime | None = None

    def requests(self) -> list[Request]:
        return [
            Request(index, index, 0, content, self.options, bare=self.is_bare)
            for index, content in enumerate(self.contents)
        ]


def read_chat(body: ChatRequest, most_messages: int) -> ParsedRequest:
    """Raises Problem for what cannot be honoured."""
    if len(body.messages) > most_messages:
        raise APIError(
            400, "too_many_messages", f"at most {most_messages} messages", param="messages"
        )
    fields = _unwrapped("/v1/chat/completions", body.model_dump(exclude_unset=True))
    try:
        messages = read_messages(fields["messages"])
    except RowError as error:
        raise APIError(400, error.code, str(error), param="messages") from None
    try:
        canonical_json(messages).encode()
    except UnicodeEncodeError:
        raise APIError(400, "invalid_unicode", NO_CHARACTER, param="messages") from None
    except RecursionError:
        raise APIError(400, "invalid_request", TOO_DEEP, param="messages") from None
    return _work(body, (messages,), fields)


def read_completion(body: CompletionRequest, most_prompts: int) -> ParsedRequest:
    """Raises Problem for what cannot be honoured."""
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(prompts) > most_prompts:
        raise APIError(400, "too_many_prompts", f"at most {most_prompts} prompts", param="prompt")
    texts = tuple(prompt for prompt in prompts if isinstance(prompt, str))
    if len(texts) < len(prompts):
        raise APIError(400, "unsupported_prompt", "a prompt is text, not tokens", param="prompt")
    if not all(text.strip() for text in texts):
        raise APIError(400, "empty_prompt", "a prompt is blank; give it text", param="prompt")
    fields = _unwrapped("/v1/completions", body.model_dump(exclude_unset=True))
    return _work(body, texts, fields)


def read_texts(body: EmbeddingRequest, model: str) -> list[str]:
    """The texts to be embedded. model: what the embedding model is called. Raises Problem."""
    if body.model != model:
        message = f"the embedding model served here is {model!r}"
        raise APIError(404, "model_not_found", message, param="model")
    for name in body.model_extra or ():
        message = f"{name!r:.64} cannot be honoured; leave it out"
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


def choice_decoding(decoding: SamplingParams, choice: int) -> SamplingParams:
    """The decoding of one of several choices: the first has the seed that was asked for, the others
    one derived from it."""
    if decoding.seed is None or choice == 0:
        return decoding
    return replace(decoding, seed=derived_seed(decoding.seed, str(choice)))


def _unwrapped(url: str, body: dict[str, Any]) -> dict[str, Any]:
    asked = {name: value for name, value in body.items() if name not in _LIVE_FIELDS}
    try:
        return unwrap({"url": url, "body": asked})
    except RowError as error:
        raise APIError(400, error.code, str(error)) from None


def _work(
    body: ChatRequest | CompletionRequest,
    contents: tuple[str | tuple[Message, ...], ...],
    fields: Mapping[str, Any],
) -> ParsedRequest:
    try:
        options = read_options(fields)
        if TOP_LOG_PROBS in fields:
            options[TOP_LOG_PROBS] = fields[TOP_LOG_PROBS]
    except RowError as error:
        raise APIError(400, error.code, str(error)) from None
    is_stream = bool(body.stream)
    if body.stream_options is not None and not is_stream:
        raise APIError(
            400, "bad_option", "stream_options belongs to a stream", param="stream_options"
        )
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    return ParsedRequest(contents, options, body.n or 1, is_stream, include_usage)
