"""`/v1/files` and `/v1/batches`, for a server that was given a folder for them."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from packhorse.errors import OutputError
from packhorse.serve import schemas
from packhorse.serve.batches import Batches
from packhorse.serve.files import FileStore, no_space
from packhorse.serve.problems import Problem

Identifier = Annotated[str, Field(min_length=1, max_length=64)]
_PURPOSES = ("batch",)


class BatchRequest(BaseModel):
    input_file_id: Identifier
    endpoint: Literal["/v1/chat/completions", "/v1/completions"]
    completion_window: Literal["24h"]
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
        Field(max_length=16),
    ] = {}


def file_routes(batches: Batches, uploads: int) -> APIRouter:
    """uploads: taken at the same time; others wait."""
    router = APIRouter(responses=schemas.ERRORS)
    store = batches.files
    places = asyncio.Semaphore(uploads)

    @router.post("/v1/files")
    async def upload(request: Request) -> dict[str, Any]:
        async with places:
            length = request.headers.get("content-length", "")
            await run_in_threadpool(store.require_room, int(length) if length.isdigit() else 0)
            try:
                return await _keep(store, request)
            except (OSError, OutputError) as error:
                batches.report(f"an upload cannot be kept: {error}")
                raise no_space() from None

    @router.get("/v1/files")
    async def listing() -> dict[str, Any]:
        return _list(await run_in_threadpool(store.documents))

    @router.get("/v1/files/{file_id}")
    async def file(file_id: str) -> dict[str, Any]:
        return store.document(file_id)

    @router.get("/v1/files/{file_id}/content", response_class=StreamingResponse)
    async def content(file_id: str) -> StreamingResponse:
        """Whole, whatever range is asked for."""
        opened = await run_in_threadpool(store.open, file_id)
        length = {"content-length": str(os.fstat(opened.fileno()).st_size)}
        return StreamingResponse(_read(opened), media_type="application/jsonl", headers=length)

    @router.delete("/v1/files/{file_id}")
    async def remove(file_id: str) -> dict[str, Any]:
        batches.require_free(file_id)
        gone = store.withdraw(file_id)  # in the same step, before a batch may begin with it
        await run_in_threadpool(shutil.rmtree, gone, ignore_errors=True)
        return {"id": file_id, "object": "file", "deleted": True}

    return router


def batch_routes(batches: Batches) -> APIRouter:
    router = APIRouter(responses=schemas.ERRORS)

    @router.post("/v1/batches")
    async def create(body: BatchRequest) -> dict[str, Any]:
        return await batches.create(body.input_file_id, body.endpoint, body.metadata)

    @router.get("/v1/batches")
    async def listing() -> dict[str, Any]:
        return _list(await batches.documents.all())

    @router.get("/v1/batches/{batch_id}")
    async def batch(batch_id: str) -> dict[str, Any]:
        return batches.documents.find(batch_id)

    @router.post("/v1/batches/{batch_id}/cancel")
    async def cancel(batch_id: str) -> dict[str, Any]:
        return await batches.documents.cancel(batch_id)

    return router


def no_batch_routes() -> APIRouter:
    """What a server without a folder says."""
    router = APIRouter(include_in_schema=False)

    @router.api_route("/v1/files{rest:path}", methods=["GET", "POST", "DELETE"])
    @router.api_route("/v1/batches{rest:path}", methods=["GET", "POST"])
    async def refuse(rest: str) -> None:
        raise Problem(404, "not_found", "this server keeps no files: start it with --state FOLDER")

    return router


async def _keep(store: FileStore, request: Request) -> dict[str, Any]:
    async with request.form(max_files=1, max_fields=8) as form:
        content, purpose = form.get("file"), form.get("purpose")
        if not isinstance(content, UploadFile):
            raise Problem(400, "missing_file", "send the file as field file", param="file")
        if purpose not in _PURPOSES:
            raise Problem(400, "bad_purpose", "purpose must be batch", param="purpose")
        await run_in_threadpool(store.require_room, content.size or 0)
        name = content.filename or "input.jsonl"
        return await run_in_threadpool(store.add, content.file, name, str(purpose))


def _read(opened: BinaryIO) -> Iterator[bytes]:
    with opened:
        while chunk := opened.read(1 << 20):
            yield chunk


def _list(documents: list[dict[str, Any]]) -> dict[str, Any]:
    ends = {"first_id": None, "last_id": None}
    if documents:
        ends = {"first_id": documents[0]["id"], "last_id": documents[-1]["id"]}
    return {"object": "list", "data": documents, "has_more": False, **ends}
