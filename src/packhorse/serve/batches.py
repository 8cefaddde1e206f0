"""Batches of requests from a file: the journal of `packhorse run` around the server's own engine.

Rows wait beside those of live requests, ROWS_AT_ONCE at most at a time. A server that is started
again goes on with what it has not finished: what was answered is in the journal.

STATE/batches/batch_…/batch.json              what OpenAI's clients read of it
STATE/batches/batch_…/output.jsonl.packhorse  the journal
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from packhorse.answering import cut_at_stop
from packhorse.atomic import write_json
from packhorse.config import InputConfig
from packhorse.data import Answer, Failure, Request
from packhorse.errors import PackhorseError
from packhorse.jobs import Exported, export_journal
from packhorse.journal import Journal
from packhorse.log_probs import log_probs_note
from packhorse.serve.files import FileStore
from packhorse.serve.problems import Problem
from packhorse.serve.requests import Work
from packhorse.serve.service import Service
from packhorse.sources import detect_format, read_rows
from packhorse.workspace import Workspace

T = TypeVar("T")
ROWS_AT_ONCE = 64
ATTEMPTS = 3
"""Times a row is tried when the engine dies beside it."""
_RETRY_SECONDS = 1.0
_IDENTIFIER = re.compile(r"batch_[0-9a-f]{24}")
_OPEN = ("validating", "in_progress", "finalizing", "cancelling")


@dataclass(slots=True)
class Batches:
    """The batches of one server; they run one after the other."""

    folder: Path
    files: FileStore
    service: Service
    _queue: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="batches")
    )

    async def run(self) -> None:
        """Runs batches until it is cancelled, unfinished ones of an earlier server first."""
        for document in reversed(self.documents()):
            if document["status"] in _OPEN:
                self._queue.put_nowait(document["id"])
        while True:
            identifier = await self._queue.get()
            try:
                await self._run(identifier)
            except (Problem, PackhorseError) as error:
                self._fail(identifier, error)
            except ExceptionGroup as group:
                self._fail(identifier, group.exceptions[0])

    def create(self, file_id: str, endpoint: str, metadata: dict[str, str]) -> dict[str, Any]:
        """Raises Problem for a file that is not there."""
        self.files.document(file_id)
        identifier = f"batch_{secrets.token_hex(12)}"
        document = {
            "id": identifier,
            "object": "batch",
            "endpoint": endpoint,
            "input_file_id": file_id,
            "completion_window": "24h",
            "status": "validating",
            "created_at": int(time.time()),
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
            "metadata": metadata,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
        }
        (self.folder / identifier).mkdir(parents=True)
        self._write(document)
        self._queue.put_nowait(identifier)
        return document

    def document(self, identifier: str) -> dict[str, Any]:
        """Raises Problem for a batch that is not there."""
        if not _IDENTIFIER.fullmatch(identifier):
            raise _absent()
        try:
            text = (self.folder / identifier / "batch.json").read_text(encoding="utf-8")
        except OSError:
            raise _absent() from None
        found: dict[str, Any] = json.loads(text)
        return found

    def documents(self) -> list[dict[str, Any]]:
        """Newest first."""
        if not self.folder.is_dir():
            return []
        names = [each.name for each in self.folder.iterdir() if (each / "batch.json").exists()]
        found = [self.document(name) for name in names]
        return sorted(found, key=lambda each: (-each["created_at"], each["id"]))

    def cancel(self, identifier: str) -> dict[str, Any]:
        """Raises Problem for a batch that is not there; one that has ended stays as it is."""
        document = self.document(identifier)
        if document["status"] in _OPEN:
            document = self._change(identifier, status="cancelling", **_now("cancelling"))
        return document

    async def _run(self, identifier: str) -> None:
        source = self.files.content(self.document(identifier)["input_file_id"])
        workspace = Workspace(self.folder / identifier / "output.jsonl")
        workspace.folder.mkdir(exist_ok=True)
        journal = await self._apart(lambda: Journal(workspace.journal))
        try:
            await self._apart(lambda: self._enlist(journal, source))
            if self.document(identifier)["status"] != "cancelling":
                self._change(identifier, status="in_progress", **_now("in_progress"))
            await self._answer_pending(identifier, journal, source)
            await self._finish(identifier, journal, workspace.output)
        finally:
            await self._apart(journal.close)

    def _enlist(self, journal: Journal, source: Path) -> None:
        """Raises InputError for a file that cannot be read, JobChangedError for another model."""
        service = self.service
        decoding = {**asdict(service.decoding), "stop": list(service.decoding.stop)}
        journal.bind({"model": service.prepared.fingerprint, **decoding})
        journal.enlist(read_rows(source, InputConfig()))
        is_openai = detect_format(source) == "openai-batch"
        journal.set_meta("openai", {"model": service.name} if is_openai else None)

    async def _answer_pending(self, identifier: str, journal: Journal, source: Path) -> None:
        """Every row without a result gets one, unless the batch is cancelled."""
        rows = await self._apart(lambda: _pending(journal, source))
        places = asyncio.Semaphore(ROWS_AT_ONCE)

        async def answer(row: Request) -> None:
            try:
                outcome = await self._outcome(row)
                note = self._note(row, outcome)
                if note is not None:
                    await self._apart(lambda: journal.add_note(row.key, note))
                await self._apart(lambda: journal.record(outcome))
            finally:
                places.release()

        async with asyncio.TaskGroup() as group:
            while True:
                await places.acquire()
                row = await self._apart(lambda: next(rows, None))
                is_cancelled = self.document(identifier)["status"] == "cancelling"
                if row is None or is_cancelled:
                    break
                group.create_task(answer(row))
                await self._count(identifier, journal)

    def _note(self, row: Request, outcome: Answer | Failure) -> dict[str, Any] | None:
        if isinstance(outcome, Failure) or outcome.log_probs is None:
            return None
        return log_probs_note(self.service.codec, row, outcome, self.service.decoding)

    async def _outcome(self, row: Request) -> Answer | Failure:
        work = Work(
            (row.content,), row.options, 1, is_stream=False, include_usage=False, is_bare=row.bare
        )
        attempts = 0
        while True:
            try:
                (choice,) = await self.service.admit(work)
            except Problem as problem:
                if problem.status not in (429, 503):
                    return _failure(row, problem.code, str(problem))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            try:
                await choice.row.done.wait()
            finally:
                self.service.abandon([choice])
            outcome = choice.row.outcome
            assert outcome is not None
            if not isinstance(outcome, Failure):
                ids, prompt = tuple(choice.row.token_ids), choice.row.prompt
                text, was_cut = cut_at_stop(self.service.codec.decode(ids), prompt.decoding.stop)
                reason = "stop" if was_cut else outcome.reason
                length, log_probs = len(prompt.token_ids), tuple(choice.row.log_probs)
                return Answer(
                    row.index, row.id, row.key, text, ids, reason, length, outcome.timing,
                    log_probs if choice.row.asks_log_probs else None,
                )  # fmt: skip
            if outcome.code == "shutting_down":
                await asyncio.Event().wait()  # the server ends; the next one goes on here
            if outcome.code == "engine_unavailable":
                continue  # it never ran; until the engine is back, `admit` refuses
            attempts += 1
            if outcome.code != "engine_restarted" or attempts == ATTEMPTS:
                return _failure(row, outcome.code, outcome.message)

    async def _finish(self, identifier: str, journal: Journal, output: Path) -> None:
        is_cancelled = self.document(identifier)["status"] == "cancelling"
        self._change(identifier, status="finalizing", **_now("finalizing"))
        await self._apart(journal.commit)
        await self._count(identifier, journal)
        written = {
            "output_file_id": await self._apart(
                partial(self._write_rows, journal, output, "completed")
            ),
            "error_file_id": await self._apart(
                partial(self._write_rows, journal, output, "failed")
            ),
        }
        status = "cancelled" if is_cancelled else "completed"
        self._change(identifier, status=status, **_now(status), **written)

    def _write_rows(self, journal: Journal, output: Path, which: Exported) -> str | None:
        """The file of rows that completed or failed; None where there are none. Rows that have not
        run, of a batch that was cancelled, are in neither."""
        rows = export_journal(journal, output, which)
        name = f"{output.parent.name}_{'output' if which == 'completed' else 'error'}.jsonl"
        try:
            with output.open("rb") as content:
                return self.files.add(content, name, "batch_output")["id"] if rows else None
        finally:
            output.unlink()

    async def _count(self, identifier: str, journal: Journal) -> None:
        counts = await self._apart(journal.counts)
        figures = {"total": counts.rows, "completed": counts.completed, "failed": counts.failed}
        self._change(identifier, request_counts=figures)

    def _fail(self, identifier: str, error: Exception) -> None:
        message = str(error).replace(str(self.files.folder), "files")
        errors = [{"code": "invalid_input", "message": message}]
        listed = {"object": "list", "data": errors}
        self._change(identifier, status="failed", errors=listed, **_now("failed"))

    def _change(self, identifier: str, **changes: Any) -> dict[str, Any]:
        document = {**self.document(identifier), **changes}
        self._write(document)
        return document

    def _write(self, document: dict[str, Any]) -> None:
        write_json(self.folder / document["id"] / "batch.json", document)

    async def _apart(self, call: Callable[[], T]) -> T:
        """In the one thread that journals belong to."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _now(status: str) -> dict[str, int]:
    """When a batch came to be so, as OpenAI's clients read it."""
    return {f"{status}_at": int(time.time())}


def _pending(journal: Journal, source: Path) -> Iterator[Request]:
    positions = set(journal.pending_positions())
    rows = read_rows(source, InputConfig())
    return (row for row in rows if row.index in positions and isinstance(row, Request))


def _failure(row: Request, code: str, message: str) -> Failure:
    return Failure(row.index, code, message, row.id, row.line, row.key)


def _absent() -> Problem:
    return Problem(404, "batch_not_found", "there is no such batch", param="batch_id")
