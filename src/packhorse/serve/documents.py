"""What OpenAI's clients read of a file or a batch: a document in a folder of its own.

FOLDER/file-…/file.json, FOLDER/batch_…/batch.json
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packhorse.atomic import write_json
from packhorse.serve.problems import Problem

_SEPARATOR = {"file": "-", "batch": "_"}


@dataclass(frozen=True, slots=True)
class Documents:
    """Names of folders are drawn here; what a client asks for is looked up only if it has the form
    of such a name."""

    folder: Path
    kind: Literal["file", "batch"]

    def new_identifier(self) -> str:
        return f"{self.kind}{_SEPARATOR[self.kind]}{secrets.token_hex(12)}"

    def place(self, identifier: str) -> Path:
        """The folder of one, which need not be there. Raises Problem for what is no name of one."""
        if not re.fullmatch(f"{self.kind}{_SEPARATOR[self.kind]}[0-9a-f]{{24}}", identifier):
            raise self.absent()
        return self.folder / identifier

    def read(self, identifier: str) -> dict[str, Any]:
        """Raises Problem for one that is not there."""
        try:
            text = self._path(self.place(identifier)).read_text(encoding="utf-8")
        except OSError:
            raise self.absent() from None
        found: dict[str, Any] = json.loads(text)
        return found

    def write(self, document: dict[str, Any], place: Path | None = None) -> None:
        """In its folder, or in `place`, which is to become it. Raises OutputError."""
        write_json(self._path(place or self.place(document["id"])), document)

    def all(self) -> list[dict[str, Any]]:
        """Newest first, without those that go while they are read."""
        found = []
        for each in self.folder.iterdir() if self.folder.is_dir() else ():
            try:
                found.append(self.read(each.name))
            except Problem:
                continue
        return sorted(found, key=lambda each: (-each["created_at"], each["id"]))

    def absent(self) -> Problem:
        return Problem(
            404,
            f"{self.kind}_not_found",
            f"there is no such {self.kind}",
            param=f"{self.kind}_id",
        )

    def _path(self, place: Path) -> Path:
        return place / f"{self.kind}.json"
