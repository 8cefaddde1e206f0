"""`/v1/responses`: one text per request, whole or as events. Nothing is stored."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from packhorse.data import Failure
from packhorse.inference.log_probs import placed
from packhorse.inference.output_reader import MarkedCodec, count_reasoning_tokens
from packhorse.openai_format.log_probs import PlacedToken, log_probs_document
from packhorse.openai_format.responses_api import (
    output_message,
    output_text,
    read_response_messages,
    read_response_options,
    read_response_prompt_options,
    response_object,
    response_usage,
)
from packhorse.openai_format.row_errors import RowError
from packhorse.serve import schemas
from packhorse.serve.config import RequestLimits
from packhorse.serve.errors import APIError, of_failure
from packhorse.serve.request_state import Finished, RequestState
from packhorse.serve.requests import ParsedRequest, check_json, read_chat_messages
from packhorse.serve.responses import ChoiceStream, read_choice
from packhorse.serve.routes import stream_events, unless_disconnected
from packhorse.serve.service import Choice, Service


def responses_routes(service: Service, limits: RequestLimits) -> APIRouter:
    router = APIRouter(responses=schemas.ERRORS)

    @router.post("/v1/responses", responses={200: {"model": schemas.ResponseObject}})
    async def responses(body: schemas.ResponsesRequest, request: Request) -> Response:
        service.check_model(body.model)
        fields = body.model_dump(exclude_unset=True)
        parsed = read_response(fields, limits.messages)
        (choice,) = await service.admit_for_client(parsed)
        answer = _Answer(service, choice, fields)
        if parsed.is_stream:
            return await stream_events(request, answer.events())
        return JSONResponse(await unless_disconnected(request, answer.collect()))

    @router.api_route(
        "/v1/responses/{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False
    )
    async def stored(rest: str) -> None:
        message = "responses are not stored here; keep the answer to the request"
        raise APIError(404, "response_not_found", message, param="response_id")

    return router


def read_response(fields: Mapping[str, Any], max_messages: int) -> ParsedRequest:
    """Parse a request. Raises APIError."""
    try:
        messages = read_response_messages(fields)
        options = read_response_options(fields)
        prompt_options = read_response_prompt_options(fields)
    except RowError as error:
        raise APIError(400, error.code, str(error)) from None
    chat = read_chat_messages(messages, max_messages, param="input")
    is_stream = bool(fields.get("stream"))
    check_json(prompt_options)
    return ParsedRequest(
        contents=(chat,),
        options={**options, "n": 1},
        is_stream=is_stream,
        include_usage=False,
        is_bare=False,
        prompt_options=prompt_options,
    )


@dataclass(frozen=True, slots=True)
class _State:
    """What is known of the text: status of its message, text, its log-probabilities."""

    status: str
    text: str = ""
    log_probs: tuple[dict[str, Any], ...] = ()


class _Answer:
    """The response to one request.

    Args:
        service: The server.
        choice: The row of the request.
        fields: The request.
    """

    def __init__(self, service: Service, choice: Choice, fields: Mapping[str, Any]) -> None:
        self._service, self._choice, self._fields = service, choice, fields
        name = secrets.token_hex(12)
        self._id, self._message_id = f"resp_{name}", f"msg_{name}"
        self._created = time.time()
        self._number = 0

    @property
    def _row(self) -> RequestState:
        return self._choice.row

    async def collect(self) -> dict[str, Any]:
        """Return the whole response. Raises APIError for a row that failed."""
        try:
            await self._row.done.wait()
        finally:
            self._service.release([self._choice])
        outcome = self._row.outcome
        if isinstance(outcome, Failure):
            raise of_failure(outcome, self._service.retry_after())
        read, was_cut = read_choice(self._service.codec, self._choice)
        decoding, found = self._row.prompt.decoding, list[PlacedToken]()
        if self._row.asks_log_probs:
            limits = decoding.stop, self._row.log_probs, decoding.min_tokens
            found = placed(MarkedCodec(self._service.codec, self._choice.form.keep), *limits)
        state = _State("", read.text, tuple(self._log_probs(found)))
        return self._finished(state, outcome, was_cut)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events of the response, the first one with the first token.

        Raises:
            APIError: For a row that failed before.
        """
        row, stream = self._row, ChoiceStream(self._service.codec, self._choice)
        changed = asyncio.Event()
        row.readers.append(changed)
        text, log_probs, seen = "", list[dict[str, Any]](), 0
        try:
            while True:
                new, outcome = row.token_ids[seen:], row.outcome
                if isinstance(outcome, Failure):
                    problem = of_failure(outcome, self._service.retry_after())
                    if not self._number:
                        raise problem
                    yield self._failed(problem, text)
                    return
                if (new or outcome) and not self._number:
                    for event in self._opening():
                        yield event
                seen += len(new)
                deltas, tokens = stream.add(new, is_last=outcome is not None)
                piece = "".join(delta.get("content", "") for delta in deltas)
                if piece or tokens:
                    found = self._log_probs(tokens)
                    text, log_probs = text + piece, log_probs + found
                    yield self._event(
                        "response.output_text.delta", **self._place, delta=piece, logprobs=found
                    )
                if outcome is not None:
                    state = _State("", text, tuple(log_probs))
                    was_cut = stream.finish_reason(outcome.reason) == "stop"
                    for event in self._closing(state, outcome, was_cut):
                        yield event
                    return
                await changed.wait()
                changed.clear()
        finally:
            self._service.release([self._choice])

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message_id, "output_index": 0, "content_index": 0}

    def _opening(self) -> list[bytes]:
        response = self._response("in_progress", [])
        message = output_message(self._message_id, "in_progress", [])
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
            self._event("response.output_item.added", output_index=0, item=message),
            self._event("response.content_part.added", **self._place, part=output_text("", [])),
        ]

    def _closing(self, state: _State, outcome: Finished, was_cut: bool) -> list[bytes]:
        response = self._finished(state, outcome, was_cut)
        (message,) = response["output"]
        (part,) = message["content"]
        done = {"text": part["text"], "logprobs": part["logprobs"]}
        return [
            self._event("response.output_text.done", **self._place, **done),
            self._event("response.content_part.done", **self._place, part=part),
            self._event("response.output_item.done", output_index=0, item=message),
            self._event(f"response.{response['status']}", response=response),
        ]

    def _failed(self, problem: APIError, text: str) -> bytes:
        message = output_message(self._message_id, "incomplete", [output_text(text, [])])
        error = {"code": "server_error", "message": str(problem)}
        return self._event(
            "response.failed", response=self._response("failed", [message], error=error)
        )

    def _finished(self, state: _State, outcome: Finished | None, was_cut: bool) -> dict[str, Any]:
        """Return the response of a row that ended, by itself or at its limit."""
        assert outcome is not None
        is_whole = was_cut or outcome.reason == "stop"
        status = "completed" if is_whole else "incomplete"
        part = output_text(state.text, state.log_probs)
        return self._response(
            status,
            [output_message(self._message_id, status, [part])],
            incomplete_details=None if is_whole else {"reason": "max_output_tokens"},
            usage=self._usage(),
            completed_at=time.time() if is_whole else None,
        )

    def _usage(self) -> dict[str, Any]:
        form, ids = self._choice.form, self._row.token_ids
        codec, is_plain = self._service.codec, self._choice.form.tags is None
        reasoning = 0 if is_plain else count_reasoning_tokens(codec, form, ids)
        return response_usage(len(self._row.prompt.token_ids), len(ids), reasoning)

    def _response(self, status: str, output: list[dict[str, Any]], **state: Any) -> dict[str, Any]:
        head = self._id, self._created, self._service.name, self._fields
        return response_object(*head, status=status, output=output, **state)

    def _log_probs(self, tokens: list[PlacedToken]) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = log_probs_document(
            self._service.codec, tokens, is_chat=True
        )["content"]
        return content

    def _event(self, kind: str, **fields: Any) -> bytes:
        """Return one event, in ASCII as those of chats."""
        document = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(document)}\n\n".encode("ascii")
