"""What is known of batches: in memory while they are under way, and on the disk."""

from __future__ import annotations

import asyncio
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packhorse.errors import OutputError
from packhorse.serve.documents import Documents, Owner, Report

_UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")


@dataclass(slots=True)
class BatchDocuments:
    """Documents of batches. All methods belong to the event loop's thread; the disk is written in a
    thread of its own, one document after the other, so that the last one stays.

    unfinished: documents of batches that have not ended, by identifier. report: gets a line for
    each document that is damaged.
    """

    folder: Path
    report: Report = lambda text: None
    unfinished: dict[str, dict[str, Any]] = field(default_factory=dict)
    _ending: set[str] = field(default_factory=set)
    _stored: Documents = field(init=False)
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="batch documents")
    )

    def __post_init__(self) -> None:
        self._stored = Documents(self.folder, "batch", self.report)

    def recover(self) -> None:
        """Takes up, oldest first, what an earlier server did not finish."""
        self._stored.remove_leftovers()
        for document in reversed(self._stored.all()):
            if document["status"] in _UNFINISHED:
                self.unfinished[document["id"]] = document

    def folder_of(self, identifier: str) -> Path:
        return self._stored.folder_of(identifier)

    def find(self, identifier: str, owner: Owner = None) -> dict[str, Any]:
        """Raises APIError for a batch that is not there, or is not for `owner`."""
        found = self.unfinished.get(identifier)
        if found is None:
            return self._stored.read(identifier, owner)
        if owner is not None and found.get("owner") not in (None, owner):
            raise self._stored.not_found_error()
        return found

    async def all(self, owner: Owner = None) -> list[dict[str, Any]]:
        """Those for `owner`, newest first."""
        unfinished = dict(self.unfinished)
        stored = await asyncio.to_thread(self._stored.all, owner)
        return [
            unfinished.get(each["id"], each) if each["status"] in _UNFINISHED else each
            for each in stored
        ]

    async def add(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A batch that begins. Raises OSError or OutputError where it cannot be written."""
        identifier = self._stored.new_identifier()
        document = {"id": identifier, "object": "batch", "status": "validating", **fields}
        self.unfinished[identifier] = document
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._begin, document)
        except BaseException:
            del self.unfinished[identifier]
            raise
        return document

    def _begin(self, document: dict[str, Any]) -> None:
        """Keeps the first document of a batch, or, with OSError or OutputError, nothing."""
        hidden = self._stored.hidden_folder_of(document["id"])
        try:
            hidden.mkdir(mode=0o700, parents=True)
            self._stored.write(document, hidden)
            self._stored.publish(hidden, document["id"])
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise

    async def cancel(self, identifier: str, owner: Owner = None) -> dict[str, Any]:
        """Raises APIError for a batch that is not there, or is not for `owner`; one that has ended
        stays as it is."""
        self.find(identifier, owner)
        has_ended = identifier not in self.unfinished or identifier in self._ending
        if not has_ended and not self.is_cancelled(identifier):
            self.update(identifier, status="cancelling", **timestamp("cancelling"))
            with suppress(OutputError):  # it is kept again when the batch ends
                await self.save(identifier)
        return self.find(identifier)

    def update(self, identifier: str, **changes: Any) -> None:
        """In memory."""
        self.unfinished[identifier] = {**self.unfinished[identifier], **changes}

    async def save(self, identifier: str) -> None:
        """On the disk. Raises OutputError where it cannot be written."""
        await self._write(self.unfinished[identifier])

    async def finish(self, identifier: str, status: str, **changes: Any) -> None:
        """The last change of a batch. Raises OutputError where it cannot be written: then the batch
        has not ended."""
        document = {**self.unfinished[identifier], "status": status, **timestamp(status), **changes}
        self._ending.add(identifier)
        try:
            await self._write(document)
        finally:
            self._ending.discard(identifier)
        del self.unfinished[identifier]

    def is_cancelled(self, identifier: str) -> bool:
        return "cancelling_at" in self.unfinished[identifier]

    def is_input(self, file_id: str) -> bool:
        """Whether a batch under way reads this file."""
        return any(each["input_file_id"] == file_id for each in self.unfinished.values())

    async def _write(self, document: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._stored.write, document)


def timestamp(status: str) -> dict[str, int]:
    """When a batch came to be so, as OpenAI's clients read it."""
    return {f"{status}_at": int(time.time())}
