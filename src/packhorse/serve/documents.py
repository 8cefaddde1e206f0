"""Documents of files and batches, as OpenAI's clients read them, each in its own folder.

FOLDER/file-…/file.json, FOLDER/batch_…/batch.json
FOLDER/.file-…, FOLDER/.batch_…  one that is being created or deleted

The folder belongs to this server, but its content may come from a backup, an editor or another
version. Only names of our own form are read, and only those that begin with a dot are ever
deleted. A document that cannot be read or has the wrong shape is reported once, kept, and not
served.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from packhorse.errors import InputError
from packhorse.serve.errors import APIError
from packhorse.storage.atomic_files import sync_folder, write_json
from packhorse.storage.json_files import decode, read_object

Kind = Literal["file", "batch"]
Report = Callable[[str], None]
MAX_DOCUMENT_BYTES = 4 << 20
"""Size limit of a document; ours have a few kilobytes."""
_SEPARATOR = {"file": "-", "batch": "_"}
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


class DamagedDocumentError(Exception):
    """A document that exists but is invalid; the message says why."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The fields that every file.json has. owner: see `Owner`."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """The fields that every batch.json has; moments (`…_at`) are added as the batch goes on."""

    id: str
    object: Literal["batch"]
    status: Literal[
        "validating",
        "in_progress",
        "finalizing",
        "completed",
        "failed",
        "cancelling",
        "cancelled",
    ]
    endpoint: str
    input_file_id: str
    created_at: int
    request_counts: dict[str, int]
    metadata: dict[str, str]
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: dict[str, Any] | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    owner: str | None = None


_SHAPES: dict[Kind, type] = {"file": StoredFile, "batch": StoredBatch}

Owner = str | None
"""Digest of the API key that a file or batch belongs to. A document without one belongs to all
keys: it was made where no key was asked for, or by a version whose keys shared everything. A caller
without one (no keys are configured) may use every document."""


@dataclass(slots=True)
class Documents:
    """Names of folders are drawn here; what a client asks for is looked up only if it has the form
    of such a name. report: gets a line for each document that cannot be used, once."""

    folder: Path
    kind: Kind
    report: Report = lambda text: None
    _reported: set[str] = field(default_factory=set)

    def new_identifier(self) -> str:
        return f"{self.kind}{_SEPARATOR[self.kind]}{secrets.token_hex(12)}"

    def is_own_name(self, name: str) -> bool:
        """Whether a folder with this name is one of ours, or one that is coming or going."""
        return self._is_identifier(name.removeprefix("."))

    def folder_of(self, identifier: str) -> Path:
        """Return the folder of a document, existing or not. Raises APIError for an invalid name."""
        if not self._is_identifier(identifier):
            raise self.not_found_error()
        return self.folder / identifier

    def hidden_folder_of(self, identifier: str) -> Path:
        """The folder of one that is coming or going; what a killed server leaves of it is rubbish.
        Raises APIError as `place`."""
        return self.folder_of(identifier).with_name(f".{identifier}")

    def read(self, identifier: str, owner: Owner = None) -> dict[str, Any]:
        """The document of one that `owner` may use.

        Raises:
            APIError: it does not exist, is damaged, or belongs to another key (404); it cannot be
                read now (503, caused by the OSError).
        """
        try:
            document = self._load(self.folder_of(identifier))
        except (FileNotFoundError, NotADirectoryError):
            raise self.not_found_error() from None
        except DamagedDocumentError as error:
            self._report_once(identifier, f"is damaged, kept and not served: {error}")
            raise self.not_found_error() from None
        except OSError as error:
            self._report_once(identifier, f"cannot be read: {error.strerror or error}")
            raise self.unreadable_error() from error
        if owner is not None and document.get("owner") not in (None, owner):
            raise self.not_found_error()
        return document

    def write(self, document: dict[str, Any], place: Path | None = None) -> None:
        """In its folder, or in `place`, which is to become it. Raises OutputError."""
        write_json(self._path(place or self.folder_of(document["id"])), document)

    def all(self, owner: Owner = None) -> list[dict[str, Any]]:
        """Those that `owner` may use, newest first, without those that go while they are read and
        those that cannot be used."""
        found = []
        for name in self._names():
            if self._is_identifier(name):
                try:
                    found.append(self.read(name, owner))
                except APIError:
                    continue
        return sorted(found, key=lambda each: (-each["created_at"], each["id"]))

    def remove_leftovers(self) -> None:
        """Removes what a server that was killed left of those that came or went."""
        for name in self._names():
            if name.startswith(".") and self.is_own_name(name):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def publish(self, place: Path, identifier: str) -> None:
        """Moves a whole folder to its place, from where it is served. Raises OSError."""
        place.rename(self.folder_of(identifier))
        sync_folder(self.folder)

    def not_found_error(self) -> APIError:
        return APIError(
            404,
            f"{self.kind}_not_found",
            f"there is no such {self.kind}",
            param=f"{self.kind}_id",
        )

    def unreadable_error(self) -> APIError:
        """For one that is there: its disk may give it another time."""
        message = f"the server cannot read this {self.kind} now; try again later"
        return APIError(503, f"{self.kind}_unreadable", message, retry_after=30)

    def _is_identifier(self, name: str) -> bool:
        pattern = f"{self.kind}{_SEPARATOR[self.kind]}[0-9a-f]{{24}}"
        return re.fullmatch(pattern, name) is not None

    def _names(self) -> Iterator[str]:
        """Raises APIError for a folder that is there and cannot be read."""
        try:
            yield from sorted(os.listdir(self.folder))  # noqa: PTH208 - names alone
        except OSError as error:
            if error.errno not in _ABSENT:
                self._report_once(".", f"cannot be read: {error.strerror}")
                raise self.unreadable_error() from error

    def _load(self, place: Path) -> dict[str, Any]:
        """Raises FileNotFoundError, DamagedDocumentError, and OSError for what cannot be read."""
        if not stat.S_ISDIR(place.stat().st_mode):
            raise DamagedDocumentError("it is no folder")
        path = self._path(place)
        try:
            document = read_object(
                path, error=InputError, max_bytes=MAX_DOCUMENT_BYTES, allow_nan=False
            )
            decode(_SHAPES[self.kind], document, path.name)
            json.dumps(document, ensure_ascii=False).encode()  # half a surrogate pair cannot be
        except InputError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                place.stat()  # raises it again if the whole folder went meanwhile
            elif isinstance(error.__cause__, OSError) and not path.is_dir():
                raise error.__cause__ from None
            raise DamagedDocumentError(str(error)) from None
        except ValueError as error:
            raise DamagedDocumentError(str(error)) from None
        if document["id"] != place.name:
            raise DamagedDocumentError(f"it is of {document['id']!r:.60}")
        return document

    def _report_once(self, identifier: str, what: str) -> None:
        if identifier not in self._reported:
            self._reported.add(identifier)
            self.report(f"{self.folder / identifier} {what}")

    def _path(self, place: Path) -> Path:
        return place / f"{self.kind}.json"


def shown_document(document: dict[str, Any]) -> dict[str, Any]:
    """What a client reads of a document."""
    return {name: value for name, value in document.items() if name != "owner"}
