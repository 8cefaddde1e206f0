"""Write and read reports on disk: strict JSON, and the texts rendered from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from packhorse.errors import InputError, OutputError
from packhorse.storage.atomic_files import atomic_file, make_folder
from packhorse.storage.json_files import decode, read_json, shown

Document = TypeVar("Document")


def write_documents(folder: Path, writers: Mapping[str, Callable[[], str]]) -> list[Path]:
    """Write a text under each name into `folder`, created if missing, and return the paths.

    Writes are atomic and in the given order, so a failure leaves the earlier files intact.

    Raises:
        OutputError: a file cannot be written; the hint names those that were.
    """
    make_folder(folder)
    written: list[Path] = []
    for name, text in writers.items():
        path = folder / name
        try:
            with atomic_file(path) as file:
                file.write(text().encode("utf-8", errors="replace"))
        except OutputError as error:
            kept = ", ".join(str(done) for done in written)
            hint = f"{error.hint}; already written: {kept}" if kept else error.hint
            raise OutputError(str(error), hint) from error
        written.append(path)
    return written


def read_document(path: Path, kind: type[Document], format_number: int, verb: str) -> Document:
    """Read the dataclass `kind` from a report.json of `packhorse VERB`.

    Unknown fields are ignored; null in place of a plain number is NaN.

    Raises:
        InputError: the file cannot be read, is not such a report, or has another format.
    """
    hint = f"give a report.json written by packhorse {verb}"
    document = read_json(path, error=InputError, hint=hint, allow_nan=False)
    if not isinstance(document, dict) or "format" not in document:
        raise InputError(f"{path} is not a packhorse report", hint)
    if document["format"] != format_number:
        raise InputError(
            f"{path} has format {shown(document['format'])}, "
            f"this version reads format {format_number}",
            f"read it with the packhorse that wrote it, or run packhorse {verb} again",
        )
    try:
        decoded: Document = decode(kind, document, "report")
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}", f"run packhorse {verb} again") from error
    return decoded


def json_text(document: Any) -> str:
    """Return a dataclass as indented ASCII JSON; NaN and infinity become null."""
    return json.dumps(_strict(asdict(document)), indent=1, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
