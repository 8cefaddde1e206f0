"""The application: routes, and every refusal in one shape."""

from __future__ import annotations

from hashlib import sha256

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from packhorse import __version__
from packhorse.jobs.host_names import host_name
from packhorse.serve.batch_routes import batch_routes, disabled_batch_routes, file_routes
from packhorse.serve.batches import Batches
from packhorse.serve.config import ServeConfig
from packhorse.serve.embedding import Embedder
from packhorse.serve.errors import APIError
from packhorse.serve.middleware import AccessMiddleware, AccessPolicy
from packhorse.serve.page import page_routes
from packhorse.serve.prometheus import ServerMetrics
from packhorse.serve.responses_routes import responses_routes
from packhorse.serve.routes import (
    disabled_embedding_routes,
    embedding_routes,
    health_routes,
    model_routes,
    openai_routes,
)
from packhorse.serve.service import Service
from packhorse.serve.validation import api_error_of

_CODES = {404: "not_found", 405: "method_not_allowed"}
_UNREADABLE: dict[type[BaseException], str] = {
    UnicodeDecodeError: "the body is not UTF-8; send JSON in UTF-8",
    RecursionError: "the body is nested too deeply; flatten it",
    ValueError: "the body holds a number of thousands of digits; shorten it",
}
"""Why a body cannot be read, by what FastAPI got from the JSON parser."""


def application(
    config: ServeConfig,
    service: Service,
    metrics: ServerMetrics,
    batches: Batches | None,
    embedder: Embedder | None,
) -> AccessMiddleware:
    """The ASGI application of a server. batches: None where it keeps no files. embedder: None where
    it makes no embeddings."""
    app = FastAPI(
        title="packhorse",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.include_router(openai_routes(service, config.limits))
    app.include_router(responses_routes(service, config.limits))
    app.include_router(embedding_routes(embedder) if embedder else disabled_embedding_routes())
    app.include_router(model_routes(service, embedder))
    app.include_router(health_routes(service))
    app.include_router(page_routes(service))
    if batches is None:
        app.include_router(disabled_batch_routes())
    else:
        app.include_router(file_routes(batches, config.limits.uploads))
        app.include_router(batch_routes(batches))
    app.add_exception_handler(APIError, _respond_api_error)
    app.add_exception_handler(HTTPException, _respond_http_error)
    app.add_exception_handler(RequestValidationError, _respond_validation_error)
    app.add_exception_handler(Exception, _respond_internal_error)
    return AccessMiddleware(app, access_policy(config), metrics)  # type: ignore[arg-type]


def access_policy(config: ServeConfig) -> AccessPolicy:
    return AccessPolicy(
        host=config.host,
        allowed_hosts=frozenset(map(host_name, config.allowed_hosts)),
        keys=tuple(sha256(key.encode()).digest() for key in config.api_keys),
        limits=config.limits,
        origins=frozenset(map(str.lower, config.allowed_origins)),
    )


async def _respond_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, APIError)
    return JSONResponse(error.to_json(), error.status, error.headers())


async def _respond_http_error(request: Request, error: Exception) -> JSONResponse:
    """Paths and methods there are not, and bodies that are no JSON."""
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "invalid_request")
    text = str(error.detail)
    if error.status_code == 400 and error.__cause__ is not None:
        text = _UNREADABLE.get(type(error.__cause__), text)
    problem = APIError(error.status_code, code, text)
    return JSONResponse(
        problem.to_json(), problem.status, {**(error.headers or {}), **problem.headers()}
    )


async def _respond_validation_error(request: Request, error: Exception) -> JSONResponse:
    """Names the first field that is wrong, and why."""
    assert isinstance(error, RequestValidationError)
    problem = api_error_of(error.errors(), error.body)
    return JSONResponse(problem.to_json(), problem.status, problem.headers())


async def _respond_internal_error(request: Request, error: Exception) -> JSONResponse:
    """uvicorn logs the traceback; the client gets none."""
    problem = APIError(500, "internal_error", "the server failed on this request")
    return JSONResponse(problem.to_json(), problem.status, problem.headers())
