"""Files that clients uploaded or that batches wrote, in the server's state folder.

STATE/files/file-…/content.jsonl  the file as it was sent, or written by a batch
STATE/files/file-…/file.json      what OpenAI's clients read of it
STATE/files/.file-…               a file that is being created or deleted
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from packhorse.errors import OutputError
from packhorse.serve.documents import Documents, Owner, Report
from packhorse.serve.errors import APIError

_CONTENT = "content.jsonl"


@dataclass(slots=True)
class FileStore:
    """Stored files. A client's file name is data and never a path.

    Attributes:
        stored_bytes: uploads are refused above this total size; None is no limit.
        reserved_disk_bytes: free disk space that uploads leave for journals and batch output.
        report: called with one line per damaged file.
    """

    folder: Path
    stored_bytes: int | None = None
    reserved_disk_bytes: int = 0
    report: Report = lambda text: None
    _documents: Documents = field(init=False)

    def __post_init__(self) -> None:
        self._documents = Documents(self.folder, "file", self.report)

    def recover(self) -> None:
        """Removes what a server that was killed left of files that came or went, and reports files
        that cannot be used; belongs before anything else."""
        self._documents.remove_leftovers()
        self._documents.all()

    def check_space(self, size: int) -> None:
        """Raises APIError where `size` bytes more are too many, by the store's bound or the disks'
        space: an upload is spooled in the folder for temporary files before it is kept."""
        if self.stored_bytes is not None and self._size() + size > self.stored_bytes:
            raise APIError(
                507,
                "storage_full",
                f"the files here would have more than {self.stored_bytes:,} bytes; delete some",
            )
        kept, spooled = _first_there(self.folder), Path(tempfile.gettempdir())
        for disk, needed in ((kept, size + self.reserved_disk_bytes), (spooled, size)):
            if shutil.disk_usage(disk).free < needed:
                raise no_space_error()

    def add(
        self, content: BinaryIO, name: str, purpose: str, owner: Owner = None
    ) -> dict[str, Any]:
        """Keeps what is left of `content`; returns the file's document. Raises OSError or
        OutputError where it cannot, and nothing of it stays."""
        identifier = self._documents.new_identifier()
        place = self._documents.hidden_folder_of(identifier)
        place.mkdir(mode=0o700, parents=True)
        try:
            with open(place / _CONTENT, "wb", opener=_private) as copy:
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
                "owner": owner,
            }
            self._documents.write(document, place)
            self._documents.publish(place, identifier)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return document

    def document(self, identifier: str, owner: Owner = None) -> dict[str, Any]:
        """Raises APIError for a file that is not there, or is not for `owner`."""
        return self._documents.read(identifier, owner)

    def documents(self, owner: Owner = None) -> list[dict[str, Any]]:
        """Those for `owner`, newest first."""
        return self._documents.all(owner)

    def content(self, identifier: str, owner: Owner = None) -> Path:
        """Raises APIError for a file that is not there, or is not for `owner`."""
        self.document(identifier, owner)
        return self._documents.folder_of(identifier) / _CONTENT

    def open(self, identifier: str, owner: Owner = None) -> BinaryIO:
        """Its content, which can be read to its end though it is removed meanwhile. Raises APIError
        for a file that is not there, is not for `owner`, or cannot be read now."""
        try:
            return self.content(identifier, owner).open("rb")
        except FileNotFoundError:
            raise self._documents.not_found_error() from None
        except OSError as error:
            self.report(f"{self.folder / identifier} cannot be read: {error.strerror}")
            raise self._documents.unreadable_error() from error

    def detach(self, identifier: str, owner: Owner = None) -> Path:
        """Hide a file from clients at once; return the folder that is left to delete.

        Raises APIError for a file that does not exist or belongs to another key.
        """
        self.document(identifier, owner)
        gone = self._documents.hidden_folder_of(identifier)
        try:
            self._documents.folder_of(identifier).rename(gone)
        except FileNotFoundError:
            raise self._documents.not_found_error() from None
        return gone

    def remove(self, identifier: str) -> None:
        """Raises APIError for a file that is not there."""
        shutil.rmtree(self.detach(identifier), ignore_errors=True)

    def remove_named(self, name: str, purpose: str) -> None:
        """Removes all files of that name and purpose."""
        for document in self.documents():
            if (document["filename"], document["purpose"]) == (name, purpose):
                with suppress(APIError):
                    self.remove(document["id"])

    def unreadable_error(self) -> APIError:
        """For a file that is there and cannot be read now."""
        return self._documents.unreadable_error()

    def _size(self) -> int:
        return sum(document["bytes"] for document in self.documents())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def no_space_error() -> APIError:
    return APIError(507, "no_space", "the server has no space for this now; try again later")


def storage_error(error: OSError | OutputError) -> APIError:
    """The answer where the server's disk took something not."""
    cause = error.__cause__ if isinstance(error, OutputError) else error
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_space_error()
    message = "the server cannot write to its disk now; try again later"
    return APIError(507, "storage_unavailable", message)


def _first_there(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
