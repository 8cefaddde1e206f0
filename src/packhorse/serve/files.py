"""Uploaded and written files of batches, in the server's state folder.

STATE/files/file-…/content.jsonl  the file as it was sent, or written by a batch
STATE/files/file-…/file.json      what OpenAI's clients read of it
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from packhorse.atomic import write_json
from packhorse.serve.problems import Problem

_CONTENT = "content.jsonl"
_IDENTIFIER = re.compile(r"file-[0-9a-f]{24}")


@dataclass(frozen=True, slots=True)
class FileStore:
    """Names of folders are drawn here; what a client calls a file is only shown."""

    folder: Path

    def add(self, content: BinaryIO, name: str, purpose: str) -> dict[str, Any]:
        """Keeps what is left of `content`; returns the file's document."""
        identifier = f"file-{secrets.token_hex(12)}"
        place = self.folder / identifier
        place.mkdir(parents=True)
        with (place / _CONTENT).open("wb") as copy:
            shutil.copyfileobj(content, copy, 1 << 20)
        document = {
            "id": identifier,
            "object": "file",
            "bytes": (place / _CONTENT).stat().st_size,
            "created_at": int(time.time()),
            "filename": name[:256],
            "purpose": purpose,
            "status": "processed",
        }
        write_json(place / "file.json", document)
        return document

    def document(self, identifier: str) -> dict[str, Any]:
        """Raises Problem for a file that is not there."""
        try:
            text = (self._place(identifier) / "file.json").read_text(encoding="utf-8")
        except OSError:
            raise _absent(identifier) from None
        found: dict[str, Any] = json.loads(text)
        return found

    def content(self, identifier: str) -> Path:
        """Raises Problem for a file that is not there."""
        self.document(identifier)
        return self._place(identifier) / _CONTENT

    def documents(self) -> list[dict[str, Any]]:
        """Newest first."""
        if not self.folder.is_dir():
            return []
        names = [each.name for each in self.folder.iterdir() if (each / "file.json").exists()]
        found = [self.document(name) for name in names]
        return sorted(found, key=lambda each: (-each["created_at"], each["id"]))

    def remove(self, identifier: str) -> None:
        """Raises Problem for a file that is not there."""
        self.document(identifier)
        shutil.rmtree(self._place(identifier))

    def _place(self, identifier: str) -> Path:
        if not _IDENTIFIER.fullmatch(identifier):
            raise _absent(identifier)
        return self.folder / identifier


def _absent(identifier: str) -> Problem:
    return Problem(404, "file_not_found", "there is no such file", param="file_id")
