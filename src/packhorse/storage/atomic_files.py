"""Atomic writes of files, folders and JSON documents.

Each is written under a temporary name in the same folder, synced to disk, and renamed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from packhorse.errors import OutputError

_BUFFER_BYTES = 2**20
# Characters JSON allows as they are, at which many readers of lines would split.
_LINE_ENDS_IN_TEXT = ("\x85", "\u2028", "\u2029")
_HINTS = {
    errno.ENOENT: "create the folder first",
    errno.ENOTDIR: "a part of the path is a file; choose another path",
    errno.EISDIR: "it is a folder; name a file inside it",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "choose a folder you may write to",
    errno.ENOSPC: "free some space and repeat the command; finished rows are kept",
    errno.EDQUOT: "free some space and repeat the command; finished rows are kept",
    errno.EFBIG: "the file system or a limit allows no larger file; choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` once it is complete and on disk. Raises OutputError."""
    target = _target(path)
    with _writing(path):
        _remove_abandoned(target)
        temporary = _temporary(target)
        try:
            with temporary.open("xb", buffering=_BUFFER_BYTES) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(target.parent)


def is_there(path: Path) -> bool:
    """Report whether a file or folder exists; False for a name that is too long."""
    try:
        return path.exists()
    except OSError:
        return False


def hint_for(error: OSError) -> str:
    """Return what to do about a file or folder that cannot be written."""
    return _HINTS.get(error.errno or 0, "check the folder and its disk")


def make_folder(folder: Path) -> Path:
    """Create a folder and its parents if they are missing. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder {folder} cannot be made: {error.strerror}", "choose another with -o"
        ) from error
    return folder


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder atomically to a new path; create its parents. Raises OutputError."""
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{_prefix(target)}{os.getpid()}-{token_hex(4)}.tmp")
        try:
            temporary.mkdir()
            for path in sorted(source.rglob("*")):
                _copy(path, temporary / path.relative_to(source))
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(target.parent)


def write_json(path: Path, document: Any) -> None:
    """Write one JSON document, indented, atomically. Raises OutputError; ValueError for NaN."""
    with atomic_file(path) as file:
        file.write(json_bytes(document, indent=2))


def json_bytes(document: Any, indent: int | None = None) -> bytes:
    """Return `document` as JSON and a newline; on one line, by any line splitter, without `indent`.

    Raises ValueError for NaN and infinity, which JSON does not have.
    """
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent)
    for character in _LINE_ENDS_IN_TEXT:
        text = text.replace(character, f"\\u{ord(character):04x}")
    # For half a surrogate pair, backslashreplace writes just what JSON's own escape is.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _copy(path: Path, target: Path) -> None:
    if path.is_dir():
        target.mkdir()
        return
    with path.open("rb") as source, target.open("xb") as file:
        shutil.copyfileobj(source, file, _BUFFER_BYTES)
        file.flush()
        os.fsync(file.fileno())


def _target(path: Path) -> Path:
    """Return the target of a link: the link stays, its target is replaced."""
    return Path(os.path.realpath(path))


def _temporary(target: Path) -> Path:
    """Return a temporary path beside `target` that contains the process id."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return target.with_name(f"{_prefix(target)}{os.getpid()}-{token_hex(4)}.tmp")


def _prefix(target: Path) -> str:
    """Return a prefix of fixed length; the name of the target may have the maximum length."""
    name = blake2b(os.fsencode(target.name), digest_size=6).hexdigest()
    return f".packhorse-{name}-"


def _remove_abandoned(target: Path) -> None:
    """Remove temporary files that killed processes left behind for the same target."""
    import psutil

    prefix = _prefix(target)
    for abandoned in target.parent.glob(f"{prefix}*.tmp"):
        process_id = abandoned.name.removeprefix(prefix).partition("-")[0]
        if process_id.isdecimal() and not psutil.pid_exists(int(process_id)):
            with suppress(OSError):
                abandoned.unlink()


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to disk, if the system supports it."""
    # Some file systems and Windows cannot; the file itself is already whole and in its place.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path} cannot be written: {reason}", hint_for(error)) from error
