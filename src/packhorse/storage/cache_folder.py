"""The cache folder, and what is kept there to start sooner.

A derived folder holds files that follow from others, such as the settings that a library computes
from a config. Its name is a digest of all that it follows from, so that it is never out of date:

    $PACKHORSE_HOME/<kind>/<digest>/    the files, and digests.json: the sha256 of each
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packhorse import __version__
from packhorse.errors import ModelError, OutputError
from packhorse.storage.atomic_files import write_json
from packhorse.storage.json_files import read_object

_DIGESTS = "digests.json"
_FORMAT = 2


def cache_root() -> Path:
    """Return $PACKHORSE_HOME, else the user's cache folder; it may not exist yet."""
    home = os.environ.get("PACKHORSE_HOME")
    try:
        if home:
            return Path(home).expanduser().absolute()
        import platformdirs

        return Path(platformdirs.user_cache_dir("packhorse")).expanduser().absolute()
    except (RuntimeError, KeyError) as error:  # a user id without a passwd entry, as in containers
        raise ModelError(
            "this user has no home folder, so there is no place for the model cache",
            "set PACKHORSE_HOME to a folder that you may write to",
        ) from error


def derived_folder(kind: str, sources: Iterable[Path], packages: Iterable[str]) -> Path:
    """Return the place of what follows from files and from the versions of packages.

    Args:
        kind: What it is, the name of the folder above it.
        sources: The files; their names and contents count.
        packages: Names of installed packages.

    Raises:
        OSError: A file cannot be read.
        ModelError: There is no place for the cache.
    """
    described = [[path.name, sha256(path.read_bytes()).hexdigest()] for path in sources]
    versions = [[name, _version(name)] for name in ("packhorse", *packages)]
    digest = sha256(json.dumps([_FORMAT, described, versions]).encode()).hexdigest()
    return cache_root() / kind / digest[:40]


def is_complete(folder: Path) -> bool:
    """Return whether a derived folder is there and its files are as they were written."""
    with suppress(OSError, ModelError, ValueError):
        digests = read_object(folder / _DIGESTS)
        return all(
            sha256((folder / name).read_bytes()).hexdigest() == digest
            for name, digest in digests.items()
        )
    return False


def fill_derived(folder: Path, write: Callable[[Path], bool]) -> None:
    """Write a derived folder; nothing happens if that fails, since it only saves time.

    Args:
        folder: The place, not complete.
        write: Writes the files into the folder it is given, and returns whether to keep them.
    """
    with suppress(OSError, ModelError, OutputError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            if not write(new):
                return
            files = [path for path in sorted(new.iterdir()) if path.is_file()]
            digests = {path.name: sha256(path.read_bytes()).hexdigest() for path in files}
            write_json(new / _DIGESTS, digests)
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)


@cache
def _version(package: str) -> str:
    try:
        return __version__ if package == "packhorse" else version(package)
    except PackageNotFoundError:
        return ""
