"""Response documents of chat and text completions, written by the server and by batch output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

Kind = Literal["chat", "text"]
_OBJECTS = {"chat": "chat.completion", "text": "text_completion"}
_CHUNK_OBJECTS = {"chat": "chat.completion.chunk", "text": "text_completion"}
_ID_PREFIXES = {"chat": "chatcmpl", "text": "cmpl"}


def response_head(
    kind: Kind, name: str, created: int, model: str, *, is_chunk: bool = False
) -> dict[str, Any]:
    """Return the fields that come before the choices.

    Args:
        kind: What was asked for.
        name: Identifies the response; its `id` is this with the prefix of the kind.
        created: Seconds since 1970.
        model: Name of the model.
        is_chunk: Whether the document is a part of a stream.
    """
    objects = _CHUNK_OBJECTS if is_chunk else _OBJECTS
    return {
        "id": f"{_ID_PREFIXES[kind]}-{name}",
        "object": objects[kind],
        "created": created,
        "model": model,
    }


def response_document(
    head: dict[str, Any], choices: Sequence[dict[str, Any]], usage: dict[str, Any] | None
) -> dict[str, Any]:
    """Return a whole response; `usage` is None if token counts are not known."""
    return {**head, "choices": list(choices), "usage": usage}


def with_prompt_log_probs(
    kind: Kind, document: dict[str, Any], found: Sequence[list[Any] | None]
) -> dict[str, Any]:
    """Return a response with `prompt_logprobs` where vLLM has them.

    That is in the response of a chat, and in each choice of a text completion.

    Args:
        kind: What was asked for.
        document: The whole response.
        found: `prompt_logprobs` of the prompt of each choice, None if they were not asked for.
    """
    if all(each is None for each in found):
        return document
    if kind == "chat":
        return {**document, "prompt_logprobs": found[0]}
    choices = [
        {**choice, "prompt_logprobs": each}
        for choice, each in zip(document["choices"], found, strict=True)
    ]
    return {**document, "choices": choices}


def choice_document(
    kind: Kind,
    index: int,
    text: str | None,
    log_probs: dict[str, Any] | None,
    reason: str | None,
    *,
    reasoning: str | None = None,
    tool_calls: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return one choice of a whole response.

    Args:
        kind: What was asked for.
        index: Position of the choice.
        text: The completion without reasoning and, in a chat, without tool calls.
        log_probs: `logprobs` (see `log_probs_document`); None if not asked for.
        reason: `finish_reason`.
        reasoning: Text of the reasoning; text completions have no field for it.
        tool_calls: Calls of tools in a chat.
    """
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if tool_calls:
        message |= {"content": text or None, "tool_calls": tool_calls}
    content = {"message": message} if kind == "chat" else {"text": text}
    return {"index": index, **content, "logprobs": log_probs, "finish_reason": reason}


def chunk_choice(
    kind: Kind,
    index: int,
    delta: dict[str, Any],
    log_probs: dict[str, Any] | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    """Return one choice of a chunk; a text completion has only the `content` of `delta`."""
    content = {"delta": delta} if kind == "chat" else {"text": delta.get("content", "")}
    return {"index": index, **content, "logprobs": log_probs, "finish_reason": reason}


def usage_document(
    prompt_tokens: int, completion_tokens: int, reasoning_tokens: int | None = None
) -> dict[str, Any]:
    """Return token counts; `reasoning_tokens` is None for a model without tags of reasoning."""
    counts: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if reasoning_tokens is not None:
        counts["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return counts
