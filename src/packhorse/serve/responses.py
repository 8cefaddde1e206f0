"""Rows in flight to OpenAI response documents: one document, or a stream of chunks."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from packhorse.data import Failure, FinishReason
from packhorse.inference.detokenizer import IncrementalDetokenizer
from packhorse.inference.generation import final_text
from packhorse.inference.log_probs import IncrementalLogProbs, placed, with_echo
from packhorse.inference.output_reader import (
    ContentStream,
    MarkedCodec,
    Part,
    ReadOutput,
    ReasoningSplitter,
    count_reasoning_tokens,
    read_output,
)
from packhorse.openai_format.log_probs import (
    PlacedToken,
    join_log_probs,
    log_probs_document,
    prompt_document,
)
from packhorse.openai_format.responses import (
    Kind,
    choice_document,
    chunk_choice,
    response_document,
    response_head,
    usage_document,
    with_prompt_log_probs,
)
from packhorse.serve.errors import APIError, of_failure
from packhorse.serve.request_state import Finished, RequestState
from packhorse.serve.requests import ParsedRequest
from packhorse.serve.service import Choice, Service
from packhorse.tokenization import Codec

TOKENS_AT_ONCE = 64
"""Tokens whose log-probabilities are written before other requests get their turn."""


async def collect_response(service: Service, kind: Kind, choices: list[Choice]) -> dict[str, Any]:
    """Return the response once all rows have finished.

    Raises:
        APIError: For the first row that failed.
    """
    try:
        for choice in choices:
            await choice.row.done.wait()
    finally:
        service.release(choices)
    documents = []
    log_probs: dict[int, dict[str, Any] | None] = {}
    for choice in choices:
        outcome = _finished(choice.row, service)
        read, was_cut = read_choice(service.codec, choice)
        if id(choice.row) not in log_probs:
            log_probs[id(choice.row)] = await _all_log_probs(service, kind, choice)
        documents.append(
            choice_document(
                kind,
                choice.index,
                read.text if read.content is None else read.content,
                log_probs[id(choice.row)],
                read.finish_reason("stop" if was_cut else outcome.reason),
                reasoning=read.reasoning,
                tool_calls=[call.to_json() for call in read.tool_calls],
            )
        )
    document = response_document(_head(service, kind), documents, _usage(service, choices))
    found = [choice.row.prompt_log_probs for choice in choices]
    prompts = [None if each is None else prompt_document(service.codec, each) for each in found]
    return with_prompt_log_probs(kind, document, prompts)


def read_choice(codec: Codec, choice: Choice) -> tuple[ReadOutput, bool]:
    """Return what a finished choice says, and whether a stop string cut it."""
    row, form, decoding = choice.row, choice.form, choice.row.prompt.decoding
    decoder = MarkedCodec(codec, form.keep)
    raw, was_cut = final_text(decoder, row.token_ids, decoding.stop, decoding.min_tokens)
    read = read_output(codec, form, row.token_ids, raw, choice.key)
    if decoding.echo and isinstance(choice.prompt, str):
        read = replace(read, text=choice.prompt + read.text)
    return read, was_cut


async def stream_response(
    service: Service, kind: Kind, work: ParsedRequest, choices: list[Choice]
) -> AsyncIterator[bytes]:
    """Yield the response as server-sent events, as soon as text cannot change any more.

    A row that fails later than the first chunk ends the stream with its error.

    Raises:
        APIError: For a row that failed before the first chunk, which comes with the first text.
    """
    head = _head(service, kind, is_chunk=True)
    queue: asyncio.Queue[dict[str, Any] | APIError | None] = asyncio.Queue(maxsize=64)
    tasks = [asyncio.create_task(_put_chunks(service, kind, each, queue)) for each in choices]
    has_begun = False
    open_choices = len(choices)
    try:
        while open_choices:
            part = await queue.get()
            if part is None:
                open_choices -= 1
            elif isinstance(part, APIError):
                if not has_begun:
                    raise part
                yield _event(part.to_json())
                return
            else:
                has_begun = True
                yield _event({**head, "choices": [part]} | _no_usage(work))
        if work.include_usage:
            yield _event(response_document(head, [], _usage(service, choices)))
        yield b"data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()
        service.release(choices)


async def _put_chunks(
    service: Service,
    kind: Kind,
    choice: Choice,
    queue: asyncio.Queue[dict[str, Any] | APIError | None],
) -> None:
    """Put the chunks of one choice into the queue: role, text, finish reason; then None."""
    row, seen = choice.row, 0
    stream = ChoiceStream(service.codec, choice)
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
            await queue.put(chunk_choice(kind, choice.index, opening))
        elif (new or outcome) and not is_opened and row.prompt.decoding.echo:
            is_opened = True
            await queue.put(chunk_choice(kind, choice.index, {"content": str(choice.prompt)}))
        deltas, tokens = stream.add(new, is_last=outcome is not None)
        for place, delta in enumerate(deltas):
            log_probs = None
            if row.asks_log_probs:
                found = tokens if place == 0 else []
                log_probs = log_probs_document(service.codec, found, is_chat=kind == "chat")
            await queue.put(chunk_choice(kind, choice.index, delta, log_probs))
        if outcome is not None:
            reason = stream.finish_reason(outcome.reason)
            await queue.put(chunk_choice(kind, choice.index, {}, reason=reason))
            await queue.put(None)
            return
        await changed.wait()
        changed.clear()


class ChoiceStream:
    """Deltas of one choice and log-probabilities of its tokens, as these are generated.

    Reasoning and text come as they are certain, tool calls in one delta when the output has ended.
    """

    def __init__(self, codec: Codec, choice: Choice) -> None:
        self._row, form = choice.row, choice.form
        decoder, decoding = MarkedCodec(codec, form.keep), choice.row.prompt.decoding
        self._text = IncrementalDetokenizer(decoder, decoding.stop, decoding.min_tokens)
        self._tokens = IncrementalLogProbs(decoder, decoding.stop, decoding.min_tokens)
        self._splitter = None if form.tags is None else ReasoningSplitter(form.tags, form.is_open)
        self._content = ContentStream(form, choice.key)
        self._num_read = 0
        self._was_cut = self._has_calls = False

    def finish_reason(self, reason: FinishReason) -> FinishReason:
        """Return why the choice ended; known after its last tokens."""
        if self._has_calls and reason != "length":
            return "tool_calls"
        return "stop" if self._was_cut else reason

    def add(
        self, new: list[int], *, is_last: bool
    ) -> tuple[list[dict[str, Any]], list[PlacedToken]]:
        """Return what these tokens make certain, and its tokens if they are asked for.

        There is a delta if there are tokens.
        """
        if self._row.asks_log_probs:
            piece, tokens = self._add_log_probs(len(new), is_last)
        else:
            piece, tokens = self._text.add(new) if new else "", []
            if is_last:
                rest, self._was_cut = self._text.finish()
                piece += rest
        deltas = self._deltas(piece, is_last)
        return deltas or [{"content": ""}] * bool(tokens), tokens

    def _deltas(self, piece: str, is_last: bool) -> list[dict[str, Any]]:
        parts: list[Part] = [("text", piece)] if piece else []
        if self._splitter is not None:
            parts = self._splitter.add(piece)
            if is_last:
                parts += self._splitter.finish()
        deltas: list[dict[str, Any]] = []
        for kind, text in parts:
            name = "reasoning_content" if kind == "reasoning" else "content"
            if said := text if kind == "reasoning" else self._content.add(text):
                deltas.append({name: said})
        if is_last:
            rest, calls = self._content.finish()
            self._has_calls = bool(calls)
            deltas += [{"content": rest}] if rest else []
            listed = [{"index": place, **call.to_json()} for place, call in enumerate(calls)]
            deltas += [{"tool_calls": listed}] if calls else []
        return deltas

    def _add_log_probs(self, count: int, is_last: bool) -> tuple[str, list[PlacedToken]]:
        """Return the text and tokens that the next `count` tokens make certain."""
        new = self._row.log_probs[self._num_read : self._num_read + count]
        self._num_read += count
        found = [self._tokens.add(token) for token in new]
        if is_last:
            rest, last, self._was_cut = self._tokens.finish()
            found.append((rest, last))
        text = "".join(piece for piece, _ in found)
        return text, [token for _, tokens in found for token in tokens]


async def _all_log_probs(service: Service, kind: Kind, choice: Choice) -> dict[str, Any] | None:
    """Return the log-probabilities of a whole choice; the event loop runs between its parts."""
    if not choice.row.asks_log_probs:
        return None
    row, decoding = choice.row, choice.row.prompt.decoding
    decoder = MarkedCodec(service.codec, choice.form.keep)
    tokens = placed(decoder, decoding.stop, row.log_probs, decoding.min_tokens)
    parts = []
    for start in range(0, max(1, len(tokens)), TOKENS_AT_ONCE):
        part = tokens[start : start + TOKENS_AT_ONCE]
        parts.append(log_probs_document(service.codec, part, is_chat=kind == "chat"))
        await asyncio.sleep(0)
    document = join_log_probs(parts)
    if kind == "chat":
        return document
    prompt_ids, prompt = row.prompt.token_ids, str(choice.prompt)
    return with_echo(service.codec, decoding, document, prompt_ids, row, prompt)


def _head(service: Service, kind: Kind, *, is_chunk: bool = False) -> dict[str, Any]:
    name, created = secrets.token_hex(12), int(time.time())
    return response_head(kind, name, created, service.name, is_chunk=is_chunk)


def _finished(row: RequestState, service: Service) -> Finished:
    if isinstance(row.outcome, Failure):
        raise of_failure(row.outcome, service.retry_after())
    assert row.outcome is not None
    return row.outcome


def _usage(service: Service, choices: list[Choice]) -> dict[str, Any]:
    """Return the token counts; each prompt counts once, whatever its number of choices."""
    prompts = {choice.content: len(choice.row.prompt.token_ids) for choice in choices}
    completion_tokens = sum(len(choice.row.token_ids) for choice in choices)
    reasoning = [
        count_reasoning_tokens(service.codec, choice.form, choice.row.token_ids)
        for choice in choices
        if choice.form.tags is not None
    ]
    return usage_document(
        sum(prompts.values()), completion_tokens, sum(reasoning) if reasoning else None
    )


def _no_usage(work: ParsedRequest) -> dict[str, None]:
    return {"usage": None} if work.include_usage else {}


def _event(document: dict[str, Any]) -> bytes:
    """Return one event, in ASCII: some clients take U+2028 or U+0085 for the end of a line."""
    return b"data: " + json.dumps(document).encode("ascii") + b"\n\n"
