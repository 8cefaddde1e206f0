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

_UNDER_WAY = ("validating", "in_progress", "finalizing", "cancelling")


@dataclass(slots=True)
class BatchDocuments:
    """Documents of batches. All methods belong to the event loop's thread; the disk is written in a
    thread of its own, one document after the other, so that the last one stays.

    under_way: documents of batches that have not ended, by identifier. report: gets a line for
    each document that is damaged.
    """

    folder: Path
    report: Report = lambda text: None
    under_way: dict[str, dict[str, Any]] = field(default_factory=dict)
    _ending: set[str] = field(default_factory=set)
    _stored: Documents = field(init=False)
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="batch documents")
    )

    def __post_init__(self) -> None:
        self._stored = Documents(self.folder, "batch", self.report)

    def recover(self) -> None:
        """Takes up, oldest first, what an earlier server did not finish."""
        self._stored.clean()
        for document in reversed(self._stored.all()):
            if document["status"] in _UNDER_WAY:
                self.under_way[document["id"]] = document

    def place(self, identifier: str) -> Path:
        return self._stored.place(identifier)

    def find(self, identifier: str, owner: Owner = None) -> dict[str, Any]:
        """Raises Problem for a batch that is not there, or is not for `owner`."""
        found = self.under_way.get(identifier)
        if found is None:
            return self._stored.read(identifier, owner)
        if owner is not None and found.get("owner") not in (None, owner):
            raise self._stored.absent()
        return found

    async def all(self, owner: Owner = None) -> list[dict[str, Any]]:
        """Those for `owner`, newest first."""
        under_way = dict(self.under_way)
        stored = await asyncio.to_thread(self._stored.all, owner)
        return [
            under_way.get(each["id"], each) if each["status"] in _UNDER_WAY else each
            for each in stored
        ]

    async def add(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A batch that begins. Raises OSError or OutputError where it cannot be written."""
        identifier = self._stored.new_identifier()
        document = {"id": identifier, "object": "batch", "status": "validating", **fields}
        self.under_way[identifier] = document
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._begin, document)
        except BaseException:
            del self.under_way[identifier]
            raise
        return document

    def _begin(self, document: dict[str, Any]) -> None:
        """Keeps the first document of a batch, or, with OSError or OutputError, nothing."""
        hidden = self._stored.hidden_place(document["id"])
        try:
            hidden.mkdir(mode=0o700, parents=True)
            self._stored.write(document, hidden)
            self._stored.show(hidden, document["id"])
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise

    async def cancel(self, identifier: str, owner: Owner = None) -> dict[str, Any]:
        """Raises Problem for a batch that is not there, or is not for `owner`; one that has ended
        stays as it is."""
        self.find(identifier, owner)
        has_ended = identifier not in self.under_way or identifier in self._ending
        if not has_ended and not self.is_cancelled(identifier):
            self.change(identifier, status="cancelling", **at("cancelling"))
            with suppress(OutputError):  # it is kept again when the batch ends
                await self.keep(identifier)
        return self.find(identifier)

    def change(self, identifier: str, **changes: Any) -> None:
        """In memory."""
        self.under_way[identifier] = {**self.under_way[identifier], **changes}

    async def keep(self, identifier: str) -> None:
        """On the disk. Raises OutputError where it cannot be written."""
        await self._write(self.under_way[identifier])

    async def end(self, identifier: str, status: str, **changes: Any) -> None:
        """The last change of a batch. Raises OutputError where it cannot be written: then the batch
        has not ended."""
        document = {**self.under_way[identifier], "status": status, **at(status), **changes}
        self._ending.add(identifier)
        try:
            await self._write(document)
        finally:
            self._ending.discard(identifier)
        del self.under_way[identifier]

    def is_cancelled(self, identifier: str) -> bool:
        return "cancelling_at" in self.under_way[identifier]

    def is_input(self, file_id: str) -> bool:
        """Whether a batch under way reads this file."""
        return any(each["input_file_id"] == file_id for each in self.under_way.values())

    async def _write(self, document: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._stored.write, document)


def at(status: str) -> dict[str, int]:
    """When a batch came to be so, as OpenAI's clients read it."""
    return {f"{status}_at": int(time.time())}
