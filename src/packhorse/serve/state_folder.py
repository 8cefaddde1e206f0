"""The folder for files and batches: claimed by a marker, held by one server at a time.

STATE/packhorse-state.json  the marker: nothing is written to or deleted in a folder without it
STATE/lock                  held while a server runs
STATE/files, STATE/batches  see `files.py` and `batch_run.py`
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import filelock

from packhorse.errors import ConfigError, OutputError
from packhorse.serve.documents import MAX_DOCUMENT_BYTES, Documents, Kind
from packhorse.storage.atomic_files import write_json
from packhorse.storage.json_files import read_object

MARKER = "packhorse-state.json"
FORMAT = 1
_LOCK = "lock"
_KINDS: dict[str, Kind] = {"files": "file", "batches": "batch"}
_IGNORED = frozenset({_LOCK, "lost+found", ".DS_Store"})
"""What an otherwise empty folder may hold: an earlier lock, and what systems put there."""
_TEMPORARY_MARKER = re.compile(r"\.packhorse-[0-9a-f]{12}-\d+-[0-9a-f]{8}\.tmp")
"""Left by a server that was killed while it wrote the marker; see
`packhorse.storage.atomic_files`."""
_HINT = "name an empty folder with --state"


@contextlib.contextmanager
def claimed_state_folder(state: Path | None) -> Iterator[None]:
    """Claims `state` and holds it for this server while entered; None does nothing.

    A folder that is new or empty gets the marker. So does one of a packhorse before there were
    markers, recognised by holding nothing but files and batches with names of our form.

    Raises:
        ConfigError: it is another program's folder, another server holds it, or it cannot be used.
    """
    if state is None:
        yield
        return
    lock = filelock.FileLock(state / _LOCK, timeout=0, mode=0o600)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_ownership(state)  # before the lock, which is a file in the folder
        lock.acquire()
    except filelock.Timeout:
        raise ConfigError(f"another server uses {state}", "give each its own --state") from None
    except OSError as error:
        raise _unusable_error(state, error) from error
    try:
        try:
            _claim(state)
        except OSError as error:
            raise _unusable_error(state, error) from error
        yield
    finally:
        lock.release()


def _check_ownership(state: Path) -> None:
    """Raises ConfigError for a folder that is neither marked nor empty nor of an older version."""
    if (state / MARKER).exists():
        _check_marker(state / MARKER)
        return
    if (stranger := next(_foreign_entries(state), None)) is not None:
        raise ConfigError(
            f"{state} is not a state folder of packhorse: it has no {MARKER}, and it holds "
            f"{str(stranger.relative_to(state))!r}",
            f"{_HINT}, or move what is not packhorse's out of this one",
        )


def _foreign_entries(state: Path) -> Iterator[Path]:
    """What no earlier version put into a state folder: it made `files` and `batches`, with nothing
    in them but folders named in our form."""
    for entry in sorted(state.iterdir()):
        if entry.name in _IGNORED or _TEMPORARY_MARKER.fullmatch(entry.name):
            continue
        kind = _KINDS.get(entry.name)
        if kind is None or not _is_folder(entry):
            yield entry
            continue
        documents = Documents(entry, kind)
        for each in sorted(entry.iterdir()):
            if not (documents.is_own_name(each.name) and _is_folder(each)):
                yield each


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _check_marker(marker: Path) -> None:
    hint = f'if the folder is packhorse\'s, write {{"format": {FORMAT}}} into it; else {_HINT}'
    found = read_object(marker, error=ConfigError, hint=hint, max_bytes=MAX_DOCUMENT_BYTES).get(
        "format"
    )
    if found != FORMAT or isinstance(found, bool):
        raise ConfigError(
            f"{marker} has format {found!r:.40}; this version reads format {FORMAT}",
            f"use the packhorse that wrote it, or {_HINT}",
        )


def _claim(state: Path) -> None:
    """Writes the marker where there is none, and makes the folders that only we may read."""
    _check_ownership(state)  # again: it may have changed before it was held
    if not (state / MARKER).exists():
        try:
            write_json(
                state / MARKER, {"format": FORMAT, "what": "state folder of packhorse serve"}
            )
        except OutputError as error:
            raise ConfigError(str(error), _HINT) from error
    for name in _KINDS:
        folder = state / name
        folder.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(PermissionError):  # another user's, as in a shared volume
            folder.chmod(0o700)


def _unusable_error(state: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{state} cannot be used: {error.strerror or error}", "name another folder")
