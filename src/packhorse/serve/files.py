"""Uploaded and written files of batches, in the server's state folder.

STATE/files/file-…/content.jsonl  the file as it was sent, or written by a batch
STATE/files/file-…/file.json      what OpenAI's clients read of it
STATE/files/.…                    a file that is coming or going
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from packhorse.serve.documents import Documents
from packhorse.serve.problems import Problem

_CONTENT = "content.jsonl"
_HIDDEN = "."


@dataclass(frozen=True, slots=True)
class FileStore:
    """What a client calls a file is only shown.

    stored_bytes: of all files, above which no uploads are taken; None is any number. spare_bytes:
    that uploads leave free on the disk, for journals and what batches write.
    """

    folder: Path
    stored_bytes: int | None = None
    spare_bytes: int = 0

    @property
    def _documents(self) -> Documents:
        return Documents(self.folder, "file")

    def clean(self) -> None:
        """Removes what a server that was killed left of files that came or went; belongs before
        anything else."""
        kept = {each["id"] for each in self.documents()}
        for each in self.folder.iterdir() if self.folder.is_dir() else ():
            if each.name not in kept:
                shutil.rmtree(each, ignore_errors=True)

    def require_room(self, size: int) -> None:
        """Raises Problem where `size` bytes more are too many, by the store's bound or the disks'
        space: an upload is spooled in the folder for temporary files before it is kept."""
        if self.stored_bytes is not None and self._size() + size > self.stored_bytes:
            raise Problem(
                507,
                "storage_full",
                f"the files here would have more than {self.stored_bytes:,} bytes; delete some",
            )
        kept, spooled = _first_there(self.folder), Path(tempfile.gettempdir())
        for disk, needed in ((kept, size + self.spare_bytes), (spooled, size)):
            if shutil.disk_usage(disk).free < needed:
                raise no_space()

    def add(self, content: BinaryIO, name: str, purpose: str) -> dict[str, Any]:
        """Keeps what is left of `content`; returns the file's document. Raises OSError or
        OutputError where it cannot, and nothing of it stays."""
        identifier = self._documents.new_identifier()
        place = self.folder / f"{_HIDDEN}{identifier}"
        place.mkdir(parents=True)
        try:
            with (place / _CONTENT).open("wb") as copy:
                shutil.copyfileobj(content, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
            document = {
                "id": identifier,
                "object": "file",
                "bytes": (place / _CONTENT).stat().st_size,
                "created_at": int(time.time()),
                "filename": name[:256],
                "purpose": purpose,
                "status": "processed",
            }
            self._documents.write(document, place)
            place.rename(self.folder / identifier)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return document

    def document(self, identifier: str) -> dict[str, Any]:
        """Raises Problem for a file that is not there."""
        return self._documents.read(identifier)

    def documents(self) -> list[dict[str, Any]]:
        """Newest first."""
        return self._documents.all()

    def content(self, identifier: str) -> Path:
        """Raises Problem for a file that is not there."""
        self.document(identifier)
        return self._documents.place(identifier) / _CONTENT

    def open(self, identifier: str) -> BinaryIO:
        """Its content, which can be read to its end though it is removed meanwhile. Raises Problem
        for a file that is not there."""
        try:
            return self.content(identifier).open("rb")
        except FileNotFoundError:
            raise self._documents.absent() from None

    def withdraw(self, identifier: str) -> Path:
        """From now on the file is not there; what is left to remove is returned. Raises Problem for
        a file that is not there."""
        self.document(identifier)
        gone = self.folder / f"{_HIDDEN}{identifier}"
        try:
            self._documents.place(identifier).rename(gone)
        except FileNotFoundError:
            raise self._documents.absent() from None
        return gone

    def remove(self, identifier: str) -> None:
        """Raises Problem for a file that is not there."""
        shutil.rmtree(self.withdraw(identifier), ignore_errors=True)

    def remove_named(self, name: str, purpose: str) -> None:
        """Removes all files of that name and purpose."""
        for document in self.documents():
            if (document["filename"], document["purpose"]) == (name, purpose):
                with suppress(Problem):
                    self.remove(document["id"])

    def _size(self) -> int:
        return sum(document["bytes"] for document in self.documents())


def no_space() -> Problem:
    return Problem(507, "no_space", "the server has no space for this now; try again later")


def _first_there(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
