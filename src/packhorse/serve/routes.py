"""The way of a request: read -> admit -> run -> answer, for chats and for texts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from packhorse.openai_format.responses import Kind
from packhorse.serve import schemas
from packhorse.serve.config import RequestLimits
from packhorse.serve.embedding import Embedder
from packhorse.serve.errors import APIError
from packhorse.serve.requests import ParsedRequest, read_chat, read_completion, read_texts
from packhorse.serve.responses import collect_response, stream_response
from packhorse.serve.service import Service

T = TypeVar("T")


def openai_routes(service: Service, limits: RequestLimits) -> APIRouter:
    """Chats and completions."""
    router = APIRouter(responses=schemas.ERRORS)

    @router.post("/v1/chat/completions", responses={200: {"model": schemas.ChatResponse}})
    async def chat(body: schemas.ChatRequest, request: Request) -> Response:
        service.check_model(body.model)
        return await _respond(service, "chat", read_chat(body, limits.messages), request)

    @router.post("/v1/completions", responses={200: {"model": schemas.CompletionResponse}})
    async def completions(body: schemas.CompletionRequest, request: Request) -> Response:
        service.check_model(body.model)
        return await _respond(service, "text", read_completion(body, limits.prompts), request)

    return router


def model_routes(service: Service, embedder: Embedder | None) -> APIRouter:
    """The models that are served."""
    router = APIRouter(responses=schemas.ERRORS)

    @router.get("/v1/models")
    async def models() -> schemas.ModelList:
        others = [_embedding_card(service, embedder)] if embedder else []
        cards = [_model_card(service, name) for name in (service.name, *service.aliases)]
        return schemas.ModelList(data=[*cards, *others])

    @router.get("/v1/models/{model:path}")
    async def model(model: str) -> schemas.ModelCard:
        if embedder is not None and model == embedder.name:
            return _embedding_card(service, embedder)
        service.check_model(model)
        return _model_card(service, model if model in service.aliases else service.name)

    return router


def embedding_routes(embedder: Embedder) -> APIRouter:
    router = APIRouter(responses=schemas.ERRORS)

    @router.post("/v1/embeddings", responses={200: {"model": schemas.EmbeddingResponse}})
    async def embeddings(body: schemas.EmbeddingRequest, request: Request) -> Response:
        texts = read_texts(body, embedder.name)
        encoding = body.encoding_format or "float"
        answer = embedder.embed(texts, encoding, body.dimensions)
        return Response(await unless_disconnected(request, answer), media_type="application/json")

    return router


def disabled_embedding_routes() -> APIRouter:
    """What a server without an embedding model says."""
    router = APIRouter(include_in_schema=False)

    @router.post("/v1/embeddings")
    async def refuse() -> None:
        message = "this server makes no embeddings: start it with --embeddings MODEL"
        raise APIError(404, "unsupported", message)

    return router


def health_routes(service: Service) -> APIRouter:
    """Live: the process answers. Ready: requests would be taken. Metrics: in Prometheus' format."""
    router = APIRouter(responses=schemas.ERRORS)

    @router.get("/health")
    async def health() -> dict[str, str]:
        """As ready, by the name that vLLM gives it."""
        return await ready()

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @router.get("/health/ready")
    async def ready() -> dict[str, str]:
        service.require_ready()
        if service.supervisor.state != "ready":
            raise APIError(503, "not_ready", "the engine is being restarted", retry_after=5)
        if service.background.failed:
            stopped = ", ".join(service.background.failed)
            message = f"the server must be restarted: {stopped} stopped by a fault"
            raise APIError(503, "background_task_stopped", message)
        return {"status": "ready"}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        text = generate_latest(service.supervisor.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return router


async def _respond(
    service: Service, kind: Kind, parsed: ParsedRequest, request: Request
) -> Response:
    choices = await service.admit_for_client(parsed)
    if not parsed.is_stream:
        return JSONResponse(
            await unless_disconnected(request, collect_response(service, kind, choices))
        )
    return await stream_events(request, stream_response(service, kind, parsed, choices))


async def stream_events(request: Request, stream: AsyncIterator[bytes]) -> Response:
    """Return a stream of server-sent events; what fails before the first one has a status."""
    first = await unless_disconnected(request, _first(stream))
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(
        _chained(first, stream), media_type="text/event-stream", headers=headers
    )


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise APIError(499, "client_left", "the client left")
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _first(stream: AsyncIterator[bytes]) -> bytes:
    return await anext(stream)


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        async for chunk in rest:
            yield chunk
    finally:
        await rest.aclose()  # type: ignore[attr-defined]


def _embedding_card(service: Service, embedder: Embedder) -> schemas.ModelCard:
    most = embedder.encoder.max_tokens
    return schemas.ModelCard(id=embedder.name, created=service.created, max_model_len=most)


def _model_card(service: Service, name: str) -> schemas.ModelCard:
    loaded = service.supervisor.loaded
    context = loaded.batching.capabilities.max_context if loaded else None
    return schemas.ModelCard(id=name, created=service.created, max_model_len=context)
