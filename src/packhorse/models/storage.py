"""Where the cache lies, and what a full or read-only disk means in a person's words."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packhorse.errors import ModelError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
_ELSEWHERE = "set PACKHORSE_HOME to a folder on a disk with room that you may write to"


def cache_root() -> Path:
    """$PACKHORSE_HOME, else the person's cache folder of this platform; may not exist yet."""
    home = os.environ.get("PACKHORSE_HOME")
    if home:
        return Path(home).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("packhorse"))


def require_free_bytes(folder: Path, needed: int) -> None:
    """ModelError before long work when the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"the model needs {needed / 1e6:,.0f} MB in {cache_root()}, "
            f"and {free / 1e6:,.0f} MB are free",
            f"free some space, or {_ELSEWHERE}",
        )


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Turn what a full or read-only disk makes of the cache at `root` into a ModelError.

    Libraries wrap such errors in their own, so the whole chain of causes is searched.
    """
    try:
        yield
    except Exception as error:
        trouble = _trouble(error, root)
        if trouble is None:
            raise
        raise ModelError(
            f"the model cache {root} cannot be written: {trouble}", _ELSEWHERE
        ) from error


def _trouble(error: BaseException | None, root: Path) -> str | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return os.strerror(error.errno or 0)
        if isinstance(error, OSError) and error.errno in _CLOSED and _concerns(error, root):
            return os.strerror(error.errno or 0)
        for code in _FULL:  # Rust libraries (safetensors, tokenizers) give only a text
            if f"(os error {code})" in str(error):
                return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None


def _concerns(error: OSError, root: Path) -> bool:
    """The failing path is the cache, something in it, or a folder it lies in."""
    if error.filename is None:
        return True
    path = Path(os.fsdecode(error.filename))
    return path.is_relative_to(root) or root.is_relative_to(path)
