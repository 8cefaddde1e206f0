"""Clear errors for a full or read-only disk of the model cache."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packhorse.errors import ModelError
from packhorse.storage.cache_folder import cache_root

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
_ELSEWHERE = "set {} to a writable folder on a disk with enough space"


def require_free_bytes(folder: Path, needed: int) -> None:
    """Raise ModelError if the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"the model needs {needed / 1e6:,.0f} MB in {cache_root()}, "
            f"and {free / 1e6:,.0f} MB are free",
            f"free some space, or {_ELSEWHERE.format('PACKHORSE_HOME')}",
        )


@contextmanager
def storage_errors(
    root: Path, variable: str = "PACKHORSE_HOME", *, networked: bool = False
) -> Iterator[None]:
    """Turn errors of a full or read-only disk into a ModelError about the cache at `root`.

    Libraries wrap such errors in their own, so the whole chain of causes is searched.

    Args:
        root: Folder of the cache.
        variable: Environment variable that sets the folder.
        networked: An error without a path may concern a connection and is passed on.
    """
    try:
        yield
    except Exception as error:
        reason = _find_disk_error(error, root, networked)
        if reason is None:
            raise
        raise ModelError(
            f"the model cache {root} cannot be written: {reason}", _ELSEWHERE.format(variable)
        ) from error


def full_disk(text: str) -> OSError | None:
    """Return the error of a full disk that another Python process printed, None if none."""
    found = [code for code in _FULL if f"[Errno {code}]" in text]
    return OSError(found[0], os.strerror(found[0])) if found else None


def _find_disk_error(error: BaseException | None, root: Path, networked: bool) -> str | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return os.strerror(error.errno or 0)
        closed = error if isinstance(error, OSError) and error.errno in _CLOSED else None
        if closed and _is_about(closed, root, networked):
            return os.strerror(closed.errno or 0)
        for code in _FULL:  # Rust libraries (safetensors, tokenizers) give only a text
            if f"(os error {code})" in str(error):
                return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None


def _is_about(error: OSError, root: Path, networked: bool) -> bool:
    """Return whether the failing path is the cache, inside it, or one of its parents."""
    if error.filename is None:
        return not networked
    path = Path(os.fsdecode(error.filename))
    return path.is_relative_to(root) or root.is_relative_to(path)
