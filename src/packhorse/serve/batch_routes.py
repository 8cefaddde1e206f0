"""`/v1/files` and `/v1/batches`, for a server that was given a folder for them."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from python_multipart.exceptions import FormParserError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from packhorse.errors import OutputError
from packhorse.openai_format.row_errors import format_value
from packhorse.serve import schemas
from packhorse.serve.batches import Batches
from packhorse.serve.documents import Owner, shown_document
from packhorse.serve.errors import APIError
from packhorse.serve.files import FileStore, storage_error


async def _owner(request: Request) -> Owner:
    owner: Owner = request.state.owner
    return owner


Caller = Annotated[Owner, Depends(_owner)]
"""To whom the request's files and batches belong; see `AccessMiddleware`."""
Identifier = Annotated[str, Field(min_length=1, max_length=64)]
_PURPOSES = ("batch",)


class BatchRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    input_file_id: Identifier
    endpoint: Literal["/v1/chat/completions", "/v1/completions"]
    completion_window: Literal["24h"]
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None,
        Field(max_length=16),
    ] = None


def file_routes(batches: Batches, uploads: int) -> APIRouter:
    """uploads: taken at the same time; others wait."""
    router = APIRouter(responses=schemas.ERRORS)
    store = batches.files
    places = asyncio.Semaphore(uploads)

    @router.post("/v1/files")
    async def upload(request: Request, owner: Caller) -> dict[str, Any]:
        async with places:
            length = request.headers.get("content-length", "")
            try:
                await run_in_threadpool(store.check_space, int(length) if length.isdigit() else 0)
                return shown_document(await _keep(store, request, owner))
            except (OSError, OutputError) as error:
                batches.report(f"an upload cannot be kept: {error}")
                raise storage_error(error) from None

    @router.get("/v1/files")
    async def listing(owner: Caller) -> dict[str, Any]:
        return _list(await run_in_threadpool(store.documents, owner))

    @router.get("/v1/files/{file_id}")
    async def file(file_id: str, owner: Caller) -> dict[str, Any]:
        return shown_document(store.document(file_id, owner))

    @router.get("/v1/files/{file_id}/content", response_class=StreamingResponse)
    async def content(file_id: str, owner: Caller) -> StreamingResponse:
        """Whole, whatever range is asked for."""
        opened = await run_in_threadpool(store.open, file_id, owner)
        length = {"content-length": str(os.fstat(opened.fileno()).st_size)}
        return StreamingResponse(_read(opened), media_type="application/jsonl", headers=length)

    @router.delete("/v1/files/{file_id}")
    async def remove(file_id: str, owner: Caller) -> dict[str, Any]:
        store.document(file_id, owner)
        batches.check_unused(file_id)
        gone = store.detach(file_id, owner)  # in the same step, before a batch may begin with it
        await run_in_threadpool(shutil.rmtree, gone, ignore_errors=True)
        return {"id": file_id, "object": "file", "deleted": True}

    return router


def batch_routes(batches: Batches) -> APIRouter:
    router = APIRouter(responses=schemas.ERRORS)

    @router.post("/v1/batches")
    async def create(body: BatchRequest, owner: Caller) -> dict[str, Any]:
        begun = batches.create(body.input_file_id, body.endpoint, body.metadata or {}, owner)
        return shown_document(await begun)

    @router.get("/v1/batches")
    async def listing(owner: Caller) -> dict[str, Any]:
        return _list(await batches.documents.all(owner))

    @router.get("/v1/batches/{batch_id}")
    async def batch(batch_id: str, owner: Caller) -> dict[str, Any]:
        return shown_document(batches.documents.find(batch_id, owner))

    @router.post("/v1/batches/{batch_id}/cancel")
    async def cancel(batch_id: str, owner: Caller) -> dict[str, Any]:
        return shown_document(await batches.documents.cancel(batch_id, owner))

    return router


def disabled_batch_routes() -> APIRouter:
    """What a server without a folder says."""
    router = APIRouter(include_in_schema=False)

    @router.api_route("/v1/files{rest:path}", methods=["GET", "POST", "DELETE"])
    @router.api_route("/v1/batches{rest:path}", methods=["GET", "POST"])
    async def refuse(rest: str) -> None:
        raise APIError(404, "not_found", "this server keeps no files: start it with --state FOLDER")

    return router


class _Parser(MultiPartParser):
    """Also knows whether the closing boundary came."""

    is_whole = False

    def on_end(self) -> None:
        self.is_whole = True


async def _keep(store: FileStore, request: Request, owner: Owner) -> dict[str, Any]:
    if "content-type" not in request.headers:  # and so no body: see `AccessPolicy`
        raise _incomplete_upload(has_begun=False)
    parser = _Parser(request.headers, request.stream(), max_files=1, max_fields=8)
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        message = "the upload is no multipart body with the boundary of its content-type"
        # Older Starlette does not wrap errors of the parser in its own.
        cause = error.__cause__ or error
        if isinstance(error, MultiPartException) and not isinstance(cause, FormParserError):
            message = f"the upload is refused: {error.message}"
        raise APIError(400, "invalid_multipart", message) from None
    try:
        if not parser.is_whole:
            raise _incomplete_upload(has_begun=bool(form))
        content, purpose = form.get("file"), form.get("purpose")
        if isinstance(content, str):
            message = "the field file has no filename, so it is no file; send one with a filename"
            raise APIError(400, "missing_file", message, param="file")
        if content is None:
            raise APIError(400, "missing_file", "the upload has no field file", param="file")
        if purpose not in _PURPOSES:
            got = "it is missing" if purpose is None else f"got {_shown_field(purpose)}"
            raise APIError(400, "bad_purpose", f"purpose must be batch, {got}", param="purpose")
        await run_in_threadpool(store.check_space, content.size or 0)
        name = content.filename or "input.jsonl"
        return await run_in_threadpool(store.add, content.file, name, str(purpose), owner)
    finally:
        await form.close()


def _incomplete_upload(*, has_begun: bool) -> APIError:
    message = (
        "the upload ends before its closing boundary; send all of it"
        if has_begun
        else "the upload has no whole part between the boundaries that its content-type names"
    )
    return APIError(400, "incomplete_upload", message)


def _shown_field(value: UploadFile | str) -> str:
    return format_value(value) if isinstance(value, str) else "a file"


def _read(opened: BinaryIO) -> Iterator[bytes]:
    with opened:
        while chunk := opened.read(1 << 20):
            yield chunk


def _list(documents: list[dict[str, Any]]) -> dict[str, Any]:
    ends = {"first_id": None, "last_id": None}
    if documents:
        ends = {"first_id": documents[0]["id"], "last_id": documents[-1]["id"]}
    data = list(map(shown_document, documents))
    return {"object": "list", "data": data, "has_more": False, **ends}
