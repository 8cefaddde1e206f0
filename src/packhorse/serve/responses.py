"""Rows under way to what OpenAI's clients read: one document, or a stream of chunks."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from packhorse.data import Failure
from packhorse.inference.detokenizer import IncrementalDetokenizer
from packhorse.inference.generation import cut_at_stop
from packhorse.inference.log_probs import IncrementalLogProbs, Placed, document, joined, placed
from packhorse.serve.errors import APIError, of_failure
from packhorse.serve.request_state import Finished, RequestState
from packhorse.serve.requests import ParsedRequest
from packhorse.serve.service import Choice, Service

Kind = Literal["chat", "text"]
TOKENS_AT_ONCE = 64
"""Whose log-probabilities are written without a pause."""
_OBJECTS = {"chat": "chat.completion", "text": "text_completion"}
_CHUNKS = {"chat": "chat.completion.chunk", "text": "text_completion"}
_PREFIXES = {"chat": "chatcmpl", "text": "cmpl"}


async def whole(service: Service, kind: Kind, choices: list[Choice]) -> dict[str, Any]:
    """The answer once all rows have ended. Raises Problem for the first that failed."""
    try:
        for choice in choices:
            await choice.row.done.wait()
    finally:
        service.release(choices)
    answers = []
    written: dict[int, dict[str, Any] | None] = {}
    for choice in choices:
        outcome = _ended(choice.row, service)
        ids, stop = choice.row.token_ids, choice.row.prompt.decoding.stop
        text, was_cut = cut_at_stop(service.codec.decode(ids), stop)
        reason = "stop" if was_cut else outcome.reason
        content = {"message": {"role": "assistant", "content": text, "refusal": None}}
        if id(choice.row) not in written:
            written[id(choice.row)] = await _whole_log_probs(service, kind, choice)
        answers.append(
            {
                "index": choice.index,
                **(content if kind == "chat" else {"text": text}),
                "finish_reason": reason,
                "logprobs": written[id(choice.row)],
            }
        )
    return {
        **_head(service, kind, _OBJECTS[kind]),
        "choices": answers,
        "usage": _usage(choices),
    }


async def chunks(
    service: Service, kind: Kind, work: ParsedRequest, choices: list[Choice]
) -> AsyncIterator[bytes]:
    """The answer as server-sent events, as text becomes certain.

    The first chunk comes with the first text. Raises Problem for a row that failed before that;
    one that fails later ends the stream with its error.
    """
    head = _head(service, kind, _CHUNKS[kind])
    queue: asyncio.Queue[dict[str, Any] | APIError | None] = asyncio.Queue(maxsize=64)
    followers = [asyncio.create_task(_follow(service, kind, each, queue)) for each in choices]
    is_begun = False
    open_choices = len(choices)
    try:
        while open_choices:
            part = await queue.get()
            if part is None:
                open_choices -= 1
            elif isinstance(part, APIError):
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
        service.release(choices)


async def _follow(
    service: Service,
    kind: Kind,
    choice: Choice,
    queue: asyncio.Queue[dict[str, Any] | APIError | None],
) -> None:
    """Puts the parts of one choice into the queue: opening, text, end; then None."""
    row, seen = choice.row, 0
    growing = _Growing(service, kind, choice)
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
        part = growing.part(new, is_whole=outcome is not None)
        if part is not None:
            await queue.put(part)
        if outcome is not None:
            reason = "stop" if growing.was_cut else outcome.reason
            await queue.put(_part(kind, choice, {}, reason))
            await queue.put(None)
            return
        await changed.wait()
        changed.clear()


class _Growing:
    """One choice while its tokens come. was_cut: a stop string ended it; known at its end."""

    def __init__(self, service: Service, kind: Kind, choice: Choice) -> None:
        self.was_cut = False
        self._service, self._kind, self._choice = service, kind, choice
        stop = choice.row.prompt.decoding.stop
        self._text = IncrementalDetokenizer(service.codec, stop)
        self._tokens = IncrementalLogProbs(service.codec, stop)
        self._taken = 0

    def part(self, new: list[int], *, is_whole: bool) -> dict[str, Any] | None:
        """What is certain with these further tokens and was not before; None for nothing."""
        if self._choice.row.asks_log_probs:
            piece, tokens = self._with_log_probs(len(new), is_whole)
        else:
            piece, tokens = self._text.add(new) if new else "", []
            if is_whole:
                rest, self.was_cut = self._text.finish()
                piece += rest
        if not piece and not tokens:
            return None
        log_probs = _log_probs(self._service, self._kind, self._choice, tokens)
        return _part(self._kind, self._choice, {"content": piece}, log_probs=log_probs)

    def _with_log_probs(self, count: int, is_whole: bool) -> tuple[str, list[Placed]]:
        """Text and tokens that the next `count` tokens make certain, one after the other."""
        new = self._choice.row.log_probs[self._taken : self._taken + count]
        self._taken += count
        found = [self._tokens.add(token) for token in new]
        if is_whole:
            rest, last, self.was_cut = self._tokens.finish()
            found.append((rest, last))
        text = "".join(piece for piece, _ in found)
        return text, [token for _, tokens in found for token in tokens]


def _part(
    kind: Kind,
    choice: Choice,
    delta: dict[str, str],
    reason: str | None = None,
    log_probs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    content = {"delta": delta} if kind == "chat" else {"text": delta.get("content", "")}
    return {"index": choice.index, **content, "finish_reason": reason, "logprobs": log_probs}


def _log_probs(
    service: Service, kind: Kind, choice: Choice, tokens: list[Placed]
) -> dict[str, Any] | None:
    if not choice.row.asks_log_probs:
        return None
    return document(service.codec, tokens, is_chat=kind == "chat")


async def _whole_log_probs(service: Service, kind: Kind, choice: Choice) -> dict[str, Any] | None:
    """Written by and by, so that others get their turns."""
    if not choice.row.asks_log_probs:
        return None
    tokens = placed(service.codec, choice.row.prompt.decoding.stop, choice.row.log_probs)
    parts = []
    for start in range(0, max(1, len(tokens)), TOKENS_AT_ONCE):
        part = tokens[start : start + TOKENS_AT_ONCE]
        parts.append(document(service.codec, part, is_chat=kind == "chat"))
        await asyncio.sleep(0)
    return joined(parts)


def _head(service: Service, kind: Kind, name: str) -> dict[str, Any]:
    return {
        "id": f"{_PREFIXES[kind]}-{secrets.token_hex(12)}",
        "object": name,
        "created": int(time.time()),
        "model": service.name,
    }


def _ended(row: RequestState, service: Service) -> Finished:
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


def _no_usage(work: ParsedRequest) -> dict[str, None]:
    return {"usage": None} if work.include_usage else {}


def _event(document: dict[str, Any]) -> bytes:
    """In ASCII: some clients take U+2028 or U+0085 for the end of a line."""
    return b"data: " + json.dumps(document).encode("ascii") + b"\n\n"
