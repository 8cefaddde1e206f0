"""Rows under way to what OpenAI's clients read: one document, or a stream of chunks."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from packhorse.answering import cut_at_stop
from packhorse.data import Failure
from packhorse.serve.problems import Problem, of_failure
from packhorse.serve.requests import Work
from packhorse.serve.service import Choice, Service
from packhorse.serve.supervisor import Ended, Row
from packhorse.serve.text import GrowingText

Kind = Literal["chat", "text"]
_OBJECTS = {"chat": "chat.completion", "text": "text_completion"}
_CHUNKS = {"chat": "chat.completion.chunk", "text": "text_completion"}
_PREFIXES = {"chat": "chatcmpl", "text": "cmpl"}


async def whole(service: Service, kind: Kind, choices: list[Choice]) -> dict[str, Any]:
    """The answer once all rows have ended. Raises Problem for the first that failed."""
    try:
        for choice in choices:
            await choice.row.done.wait()
    finally:
        service.abandon(choices)
    answers = []
    for choice in choices:
        outcome = _ended(choice.row, service)
        ids, stop = choice.row.token_ids, choice.row.prompt.decoding.stop
        text, was_cut = cut_at_stop(service.codec.decode(ids), stop)
        reason = "stop" if was_cut else outcome.reason
        content = {"message": {"role": "assistant", "content": text, "refusal": None}}
        answers.append(
            {
                "index": choice.index,
                **(content if kind == "chat" else {"text": text}),
                "finish_reason": reason,
                "logprobs": None,
            }
        )
    return {
        **_head(service, kind, _OBJECTS[kind]),
        "choices": answers,
        "usage": _usage(choices),
    }


async def chunks(
    service: Service, kind: Kind, work: Work, choices: list[Choice]
) -> AsyncIterator[bytes]:
    """The answer as server-sent events, as text becomes certain.

    The first chunk comes with the first text. Raises Problem for a row that failed before that;
    one that fails later ends the stream with its error.
    """
    head = _head(service, kind, _CHUNKS[kind])
    queue: asyncio.Queue[dict[str, Any] | Problem | None] = asyncio.Queue(maxsize=64)
    followers = [asyncio.create_task(_follow(service, kind, each, queue)) for each in choices]
    is_begun = False
    open_choices = len(choices)
    try:
        while open_choices:
            part = await queue.get()
            if part is None:
                open_choices -= 1
            elif isinstance(part, Problem):
                if not is_begun:
                    raise part
                yield _event(part.to_json())
                return
            else:
                is_begun = True
                yield _event({**head, "choices": [part]} | _no_usage(work))
        if work.include_usage:
            yield _event({**head, "choices": [], "usage": _usage(choices)})
        yield b"data: [DONE]\n\n"
    finally:
        for follower in followers:
            follower.cancel()
        service.abandon(choices)


async def _follow(
    service: Service,
    kind: Kind,
    choice: Choice,
    queue: asyncio.Queue[dict[str, Any] | Problem | None],
) -> None:
    """Puts the parts of one choice into the queue: opening, text, end; then None."""
    row, seen = choice.row, 0
    text = GrowingText(service.codec, row.prompt.decoding.stop)
    opening = {"role": "assistant", "content": ""}
    changed = asyncio.Event()
    row.readers.append(changed)
    is_opened = False
    while True:
        new, outcome = row.token_ids[seen:], row.outcome
        seen += len(new)
        if isinstance(outcome, Failure):
            await queue.put(of_failure(outcome, service.retry_after()))
            return
        if (new or outcome) and not is_opened and kind == "chat":
            is_opened = True
            await queue.put(_part(kind, choice, opening))
        piece = text.add(new) if new else ""
        if outcome is not None:
            rest, was_cut = text.finish()
            piece += rest
        if piece:
            await queue.put(_part(kind, choice, {"content": piece}))
        if outcome is not None:
            reason = "stop" if was_cut else outcome.reason
            await queue.put(_part(kind, choice, {}, reason))
            await queue.put(None)
            return
        await changed.wait()
        changed.clear()


def _part(
    kind: Kind, choice: Choice, delta: dict[str, str], reason: str | None = None
) -> dict[str, Any]:
    content = {"delta": delta} if kind == "chat" else {"text": delta.get("content", "")}
    return {"index": choice.index, **content, "finish_reason": reason, "logprobs": None}


def _head(service: Service, kind: Kind, name: str) -> dict[str, Any]:
    return {
        "id": f"{_PREFIXES[kind]}-{secrets.token_hex(12)}",
        "object": name,
        "created": int(time.time()),
        "model": service.name,
    }


def _ended(row: Row, service: Service) -> Ended:
    if isinstance(row.outcome, Failure):
        raise of_failure(row.outcome, service.retry_after())
    assert row.outcome is not None
    return row.outcome


def _usage(choices: list[Choice]) -> dict[str, int]:
    """Prompts count once, whatever the number of their choices."""
    prompts = {choice.content: len(choice.row.prompt.token_ids) for choice in choices}
    prompt_tokens = sum(prompts.values())
    completion_tokens = sum(len(choice.row.token_ids) for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _no_usage(work: Work) -> dict[str, None]:
    return {"usage": None} if work.include_usage else {}


def _event(document: dict[str, Any]) -> bytes:
    """In ASCII: some clients take U+2028 or U+0085 for the end of a line."""
    return b"data: " + json.dumps(document).encode("ascii") + b"\n\n"
