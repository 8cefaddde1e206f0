"""Run batches one after the other; a failed batch does not stop later ones.

A restarted server resumes unfinished batches from their journals.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from packhorse.errors import InputError, JobChangedError, OutputError
from packhorse.inputs import detect_format
from packhorse.serve.batch_documents import BatchDocuments
from packhorse.serve.batch_rows import BatchRows
from packhorse.serve.batch_run import BatchRun
from packhorse.serve.documents import Owner
from packhorse.serve.errors import APIError
from packhorse.serve.files import FileStore, storage_error
from packhorse.serve.service import Service

INITIAL_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0


@dataclass(slots=True)
class Batches:
    """report: called with lines for people."""

    documents: BatchDocuments
    files: FileStore
    service: Service
    report: Callable[[str], None] = lambda text: None
    _rows: BatchRows = field(init=False)
    _queue: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    _pauses: dict[str, float] = field(default_factory=dict)
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="batches")
    )

    def __post_init__(self) -> None:
        self._rows = BatchRows(self.service)

    def recover(self) -> None:
        """Load the files and batches of an earlier server. Call it before serving requests."""
        self.files.recover()
        self.documents.recover()
        for identifier in self.documents.unfinished:
            self._queue.put_nowait(identifier)

    async def run(self) -> None:
        """Run batches until cancelled. The model must be loaded."""
        while True:
            await self._run_batch(await self._queue.get())

    async def create(
        self, file_id: str, endpoint: str, metadata: dict[str, str], owner: Owner = None
    ) -> dict[str, Any]:
        """Raises APIError for a file that is not there or is no batch, and where there is no space
        for a batch."""
        await asyncio.to_thread(self._require_batch, file_id, owner)
        self.files.document(file_id, owner)  # again, in the same step as the batch begins
        try:
            document = await self.documents.add(
                {
                    "endpoint": endpoint,
                    "input_file_id": file_id,
                    "completion_window": "24h",
                    "created_at": int(time.time()),
                    "output_file_id": None,
                    "error_file_id": None,
                    "errors": None,
                    "metadata": metadata,
                    "request_counts": {"total": 0, "completed": 0, "failed": 0},
                    "owner": owner,
                }
            )
        except (OSError, OutputError) as error:
            self.report(f"a batch cannot be begun: {error}")
            raise storage_error(error) from None
        self._queue.put_nowait(document["id"])
        return document

    def _require_batch(self, file_id: str, owner: Owner) -> None:
        """Raises APIError for a file that is not there or holds no lines of a batch."""
        try:
            found = detect_format(self.files.content(file_id, owner))
        except InputError as error:
            if isinstance(error.__cause__, OSError):
                raise self.files.unreadable_error() from error
            message = self._without_path(error, file_id)
            raise APIError(400, "invalid_input", message, param="input_file_id") from None
        if found != "openai-batch":
            message = (
                f"{file_id} is no batch: a line must be an object with custom_id, method, url and "
                "body"
            )
            raise APIError(400, "invalid_input", message, param="input_file_id")

    def _without_path(self, error: InputError, file_id: str) -> str:
        """What is wrong with a file, for its client."""
        folder = str(self.files.folder / file_id)
        return str(error).replace(f"{folder}/content.jsonl", file_id).replace(folder, file_id)

    def check_unused(self, file_id: str) -> None:
        """Raises APIError for a file that a batch under way reads."""
        if self.documents.is_input(file_id):
            raise APIError(
                409,
                "file_in_use",
                "a batch that has not ended reads this file; cancel the batch first",
                param="file_id",
            )

    async def _run_batch(self, identifier: str) -> None:
        """Run a batch to its end, or retry it later if the disk is full."""
        run = BatchRun(identifier, self.documents, self.files, self._rows, self._thread)
        try:
            try:
                await run.run()
            except Exception as error:
                cause = _cause(error)
                if _is_disk_error(cause):
                    raise
                self.report(f"{identifier} failed: {type(cause).__name__}: {cause}")
                await _fail(run, *self._client_error(identifier, cause))
        except Exception as error:  # noqa: BLE001 (later batches run, whatever this is)
            self._retry_later(identifier, _cause(error))
        else:
            self._pauses.pop(identifier, None)

    def _retry_later(self, identifier: str, error: Exception) -> None:
        pause = self._pauses.get(identifier, INITIAL_RETRY_SECONDS)
        self._pauses[identifier] = min(2 * pause, MAX_RETRY_SECONDS)
        asyncio.get_running_loop().call_later(pause, self._queue.put_nowait, identifier)
        self.service.supervisor.metrics.batch_interruptions.inc()
        self.report(f"{identifier} goes on in {pause:g} s: {type(error).__name__}: {error}")

    def _client_error(self, identifier: str, error: Exception) -> tuple[str, str]:
        """Return code and message for the client, without paths of this machine."""
        if isinstance(error, APIError):
            return error.code, str(error)
        if isinstance(error, JobChangedError):
            return "server_changed", f"{error}; start a new batch for the rows left"
        if isinstance(error, InputError) and not isinstance(error.__cause__, OSError):
            file = self.documents.find(identifier)["input_file_id"]
            return "invalid_input", self._without_path(error, file)
        return "internal_error", "the server failed on this batch"


async def _fail(run: BatchRun, code: str, message: str) -> None:
    """Mark a batch failed; its answers are left out only if its journal is damaged."""
    try:
        await run.fail(code, message)
    except Exception as error:
        if _is_disk_error(_cause(error)):
            raise
        await run.fail(code, message, has_answers=False)


def _cause(error: Exception) -> Exception:
    """Return the cause in a group of errors, preferring errors of the disk."""
    if not isinstance(error, ExceptionGroup):
        return error
    causes = [_cause(each) for each in error.exceptions]
    return next(filter(_is_disk_error, causes), causes[0])


def _is_disk_error(error: BaseException | None) -> bool:
    """Return whether a retry may succeed."""
    if isinstance(error, OutputError | APIError):
        return _is_disk_error(error.__cause__)
    return isinstance(error, OSError | sqlite3.OperationalError)
