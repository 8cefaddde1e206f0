"""One batch, from its input to its files: the journal of `packhorse run` around the server's own
engine.

STATE/batches/batch_…/output.jsonl.packhorse  the journal
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from packhorse.config import InputConfig
from packhorse.data import Completion, Failure, Request
from packhorse.inference.job_settings import result_settings
from packhorse.inputs import detect_format, read_rows
from packhorse.jobs.frame import Exported, export_journal
from packhorse.jobs.journal import Journal
from packhorse.jobs.workspace import Workspace
from packhorse.params.prompt_options import prompt_settings
from packhorse.serve.batch_documents import BatchDocuments, timestamp
from packhorse.serve.batch_rows import BatchRows
from packhorse.serve.files import FileStore

T = TypeVar("T")
ROWS_AT_ONCE = 64
_SAVE_SECONDS = 1.0
_FILES: tuple[tuple[str, Exported], ...] = (
    ("output_file_id", "completed"),
    ("error_file_id", "failed"),
)


@dataclass(slots=True)
class BatchRun:
    """A batch under way. thread: the one that journals belong to.

    Rows wait beside those of live requests, ROWS_AT_ONCE at most at a time.
    """

    identifier: str
    documents: BatchDocuments
    files: FileStore
    rows: BatchRows
    thread: ThreadPoolExecutor
    _counts: dict[str, int] = field(default_factory=dict)
    _saved_at: float = 0.0

    async def run(self) -> None:
        """Raises APIError or PackhorseError for a batch that cannot be done, and whatever its files
        raise, alone or in an ExceptionGroup; what was answered is in the journal."""
        source = self.files.content(self.documents.find(self.identifier)["input_file_id"])
        self._workspace.folder.mkdir(exist_ok=True)
        async with self._journal() as journal:
            await self._in_thread(partial(self._register_rows, journal, source))
            await self._load_counts(journal)
            if "in_progress_at" not in self.documents.find(self.identifier):
                self._set_status("in_progress")
                await self.documents.save(self.identifier)
            await self._run_pending(journal, source)
            await self._finish(journal)

    async def fail(self, code: str, message: str, *, has_answers: bool = True) -> None:
        """Ends the batch with what was answered before it failed, if anything was."""
        errors = {"object": "list", "data": [{"code": code, "message": message}]}
        if not (has_answers and self._workspace.journal.exists()):
            await self.documents.finish(self.identifier, "failed", errors=errors)
            return
        async with self._journal() as journal:
            await self._end(journal, "failed", errors=errors)

    @property
    def _workspace(self) -> Workspace:
        return Workspace(self.documents.folder_of(self.identifier) / "output.jsonl")

    @asynccontextmanager
    async def _journal(self) -> AsyncIterator[Journal]:
        journal = await self._in_thread(partial(Journal, self._workspace.journal))
        try:
            yield journal
        finally:
            await self._in_thread(journal.close)

    @property
    def _reading(self) -> InputConfig:
        """Lines must name this model and be of the batch's endpoint."""
        service = self.rows.service
        return InputConfig(
            served_model_name=service.names or (service.name,),
            batch_endpoint=self.documents.find(self.identifier)["endpoint"],
        )

    def _register_rows(self, journal: Journal, source: Path) -> None:
        """Raises InputError for a file that cannot be read, JobChangedError for another model or
        another way to run it."""
        service = self.rows.service
        loaded = service.supervisor.loaded
        assert loaded is not None
        capabilities = loaded.batching.capabilities
        identity = {"model": service.prepared.fingerprint, "engine": capabilities.name}
        journal.store_settings(
            {
                **identity,
                **result_settings(capabilities.compute_type, service.decoding),
                **prompt_settings(service.prompts),
            }
        )
        is_openai = detect_format(source) == "openai-batch"
        journal.set_meta("openai", {"model": service.name} if is_openai else None)
        journal.register_rows(read_rows(source, self._reading))
        journal.discard_damaged()

    async def _run_pending(self, journal: Journal, source: Path) -> None:
        """Every row without a result gets one, unless the batch is cancelled."""
        reading = self._reading
        pending = await self._in_thread(lambda: _pending(journal, source, reading))
        places = asyncio.Semaphore(ROWS_AT_ONCE)
        created = self.documents.find(self.identifier)["created_at"]
        date = datetime.fromtimestamp(created)  # noqa: DTZ006 (templates write the local date)

        async def answer(row: Request) -> None:
            try:
                outcome = await self.rows.outcome(row, date)
                await self._in_thread(partial(self._record, journal, row, outcome))
                await self._update_counts(outcome)
            finally:
                places.release()

        async with asyncio.TaskGroup() as group:
            while True:
                await places.acquire()
                row = await self._in_thread(lambda: next(pending, None))
                if row is None or self.documents.is_cancelled(self.identifier):
                    break
                group.create_task(answer(row))

    def _record(self, journal: Journal, row: Request, outcome: Completion | Failure) -> None:
        journal.record(outcome, self.rows.note(row, outcome))

    async def _update_counts(self, outcome: Completion | Failure) -> None:
        """Counts a row; the disk learns of it once in a while."""
        self._counts["failed" if isinstance(outcome, Failure) else "completed"] += 1
        self.documents.update(self.identifier, request_counts=dict(self._counts))
        now = time.monotonic()
        if now - self._saved_at >= _SAVE_SECONDS:
            self._saved_at = now
            await self.documents.save(self.identifier)

    async def _load_counts(self, journal: Journal) -> None:
        counts = await self._in_thread(journal.counts)
        self._counts = {
            "total": counts.rows,
            "completed": counts.completed,
            "failed": counts.failed,
        }
        self.documents.update(self.identifier, request_counts=dict(self._counts))

    async def _finish(self, journal: Journal) -> None:
        await self._in_thread(journal.commit)
        self._set_status("finalizing")
        await self.documents.save(self.identifier)
        is_cancelled = self.documents.is_cancelled(self.identifier)
        await self._end(journal, "cancelled" if is_cancelled else "completed")

    async def _end(self, journal: Journal, status: str, **changes: Any) -> None:
        """The batch's files, and its last document."""
        await self._load_counts(journal)
        written = {
            name: await self._in_thread(partial(self._write_rows, journal, which))
            for name, which in _FILES
        }
        await self.documents.finish(self.identifier, status, **changes, **written)

    def _write_rows(self, journal: Journal, which: Exported) -> str | None:
        """The file of rows that completed or failed, in place of one that an earlier attempt to
        end the batch wrote; None where there are none. Rows that have not run, of a batch that was
        cancelled, are in neither."""
        output = self._workspace.output
        rows = export_journal(journal, output, which)
        name = f"{self.identifier}_{'output' if which == 'completed' else 'error'}.jsonl"
        self.files.remove_named(name, "batch_output")
        try:
            with output.open("rb") as content:
                if not rows:
                    return None
                owner = self.documents.find(self.identifier).get("owner")
                return str(self.files.add(content, name, "batch_output", owner)["id"])
        finally:
            output.unlink()

    def _set_status(self, status: str) -> None:
        """What is being cancelled stays so until it has ended."""
        is_cancelled = self.documents.is_cancelled(self.identifier)
        self.documents.update(
            self.identifier, **({} if is_cancelled else {"status": status}), **timestamp(status)
        )

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.thread, call)


def _pending(journal: Journal, source: Path, reading: InputConfig) -> Iterator[Request]:
    positions = set(journal.pending_positions())
    rows = read_rows(source, reading)
    return (row for row in rows if row.index in positions and isinstance(row, Request))
