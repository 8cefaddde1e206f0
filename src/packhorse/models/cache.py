"""Folders that were fetched or converted once, and are checked byte for byte each time.

    $PACKHORSE_HOME/
        smollm2-135m-instruct-hf-0123456789ab/    an entry: its key is in its name
            packhorse-manifest.json               written last: key, sizes, sha256, versions
        .locks/<entry>.lock                       held while an entry is built
        .building~<entry>~<random>/               an entry on its way; renamed when complete

An entry that is altered or incomplete is never used but built again, with a message.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packhorse import __version__
from packhorse.engine_protocol.registry import ModelKind
from packhorse.errors import ModelError
from packhorse.models.hashing import file_sha256, fingerprint
from packhorse.models.prepared import Report
from packhorse.models.storage import cache_root, storage_errors
from packhorse.storage.atomic_files import sync_folder
from packhorse.storage.json_files import decode, read_object

FORMAT = 1
MANIFEST = "packhorse-manifest.json"
REFERENCE_LOGITS = "reference_logits.npz"
"""File that judges a model and decides none of its results: see `reference_logits`."""
_BUILDING = ".building~"

Build = Callable[[Path, Path], None]
"""Fills the empty folder given first; the second is scratch space that is removed afterwards."""


def slug(model: str) -> str:
    """What a person calls a model, as a part of a file name."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "-" for c in model)
    return kept.lower().strip(".-_")[:60] or "model"


@dataclass(frozen=True, slots=True)
class Key:
    """What an entry is made from and how; equal keys share an entry.

    model: what a person calls it, for the folder's name. variant: "hf" or a quantization.
    origin: digest or pinned place of the source, with the versions of whatever decides the result.
    """

    model: str
    kind: ModelKind
    variant: str
    quantization: str
    origin: tuple[str, ...]

    @property
    def digest(self) -> str:
        return sha256(json.dumps([self.kind, self.variant, *self.origin]).encode()).hexdigest()

    @property
    def folder_name(self) -> str:
        return f"{slug(self.model)}-{self.variant}-{self.digest[:12]}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A verified entry. digests: file name -> sha256 of every file. size_bytes: of them all."""

    folder: Path
    digests: Mapping[str, str]
    size_bytes: int

    @property
    def fingerprint(self) -> str:
        """Over all files that decide a result; reference logits only judge, and their last bits
        differ between machines."""
        return fingerprint({n: d for n, d in self.digests.items() if n != REFERENCE_LOGITS})


@dataclass(frozen=True, slots=True)
class CachedModel:
    """One line of `packhorse models`. verified: None where it was not checked."""

    name: str
    kind: str
    quantization: str
    folder: Path
    size_bytes: int
    verified: bool | None


@dataclass(frozen=True, slots=True)
class _File:
    """A file of an entry, as the manifest lists it."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _NamedKey:
    """What of a `Key` the manifest is read for."""

    model: str
    kind: str
    quantization: str


@dataclass(frozen=True, slots=True)
class _Manifest:
    """The types that a manifest must have."""

    digest: str
    key: _NamedKey
    files: dict[str, _File]


class _UnusableError(Exception):
    """Why an entry cannot be used; empty when there is none."""


def obtain(key: Key, build: Build, report: Report) -> Entry:
    """The verified entry of `key`, built first if it is not there or not as it was written.

    One process builds, others wait for it. Raises ModelError when the cache cannot be written,
    and whatever `build` raises; nothing half-made is left in the place of an entry.
    """
    folder = cache_root() / key.folder_name
    try:
        return _verify(folder, key)
    except _UnusableError:
        pass  # looked at again under the lock, which a read-only cache cannot give
    with storage_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, report):
            try:
                return _verify(folder, key)
            except _UnusableError as reason:
                if str(reason):
                    report(f"the cached model {folder} is damaged ({reason}): it is built again")
            _remove_leftovers(folder)
            return _build(folder, key, build)


def cached_models(*, verify: bool = False) -> list[CachedModel]:
    """All entries, by name; with `verify` every byte of them is checked."""
    manifests = sorted(cache_root().glob(f"*/{MANIFEST}"))
    return [_describe(manifest.parent, verify) for manifest in manifests]


def _describe(folder: Path, verify: bool) -> CachedModel:
    try:
        manifest = _read_manifest(folder)
        key = manifest["key"]
        name, kind, quantization = key["model"], key["kind"], key["quantization"]
    except _UnusableError:
        return CachedModel(folder.name, "unreadable", "", folder, 0, False)
    verified = None
    if verify:
        try:
            _verify_files(folder, manifest)
            verified = True
        except _UnusableError:
            verified = False
    size = sum(file["bytes"] for file in manifest["files"].values())
    return CachedModel(name, kind, quantization, folder, size, verified)


def _verify(folder: Path, key: Key) -> Entry:
    if not folder.is_dir():
        raise _UnusableError
    manifest = _read_manifest(folder)
    if manifest.get("digest") != key.digest:
        raise _UnusableError(f"{MANIFEST} belongs to something else")
    return _verify_files(folder, manifest)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = read_object(folder / MANIFEST, allow_nan=False)
    except ModelError:
        raise _UnusableError(f"it has no readable {MANIFEST}") from None
    if manifest.get("format") != FORMAT:
        raise _UnusableError(f"{MANIFEST} has another format")
    try:
        decode(_Manifest, manifest, MANIFEST)
    except ValueError as error:
        raise _UnusableError(str(error)) from None
    return manifest


def _verify_files(folder: Path, manifest: dict[str, Any]) -> Entry:
    """Every listed file has its size and digest, and there is no other."""
    expected: dict[str, dict[str, Any]] = manifest["files"]
    try:
        found = _sizes(folder)
        for name in sorted(expected.keys() | found.keys()):
            if name not in found:
                raise _UnusableError(f"{name} is missing")
            if name not in expected:
                raise _UnusableError(f"{name} does not belong to it")
            if found[name] != expected[name]["bytes"]:
                raise _UnusableError(f"{name} has another size")
        for name, record in expected.items():
            if file_sha256(folder / name) != record["sha256"]:
                raise _UnusableError(f"{name} was altered")
    except OSError as error:
        raise _UnusableError(str(error)) from error
    digests = {name: record["sha256"] for name, record in expected.items()}
    return Entry(folder, digests, sum(found.values()))


def _build(folder: Path, key: Key, build: Build) -> Entry:
    prefix = f"{_BUILDING}{folder.name}~"
    workspace = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        contents, scratch = workspace / "entry", workspace / "scratch"
        contents.mkdir()
        scratch.mkdir()
        build(contents, scratch)
        manifest = _manifest(contents, key)
        _write_manifest(contents, manifest)
        if folder.exists():
            folder.rename(workspace / "damaged")
        contents.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    digests = {name: record["sha256"] for name, record in manifest["files"].items()}
    return Entry(folder, digests, sum(file["bytes"] for file in manifest["files"].values()))


def _manifest(contents: Path, key: Key) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "digest": key.digest,
        "key": asdict(key),
        "versions": library_versions(),
        "files": {
            name: {"bytes": size, "sha256": file_sha256(contents / name)}
            for name, size in sorted(_sizes(contents).items())
        },
    }


def _write_manifest(contents: Path, manifest: dict[str, Any]) -> None:
    """Written after all files are on the disk, with the rights a new file gets."""
    path = contents / MANIFEST
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    mode = path.stat().st_mode
    for name in manifest["files"]:
        (contents / name).chmod(mode)  # safetensors lets only the owner read
        _sync(contents / name)
    _sync(path)
    sync_folder(contents)


def _sizes(folder: Path) -> dict[str, int]:
    """File name -> bytes of all files but the manifest, relative, with forward slashes."""
    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path, report: Report) -> Iterator[None]:
    """Holds the entry's lock; it dies with the process that holds it."""
    import filelock

    locks = folder.parent / ".locks"
    locks.mkdir(exist_ok=True)
    lock = filelock.FileLock(locks / f"{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        report(f"another process is preparing {folder.name}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left; call it only with the entry's lock."""
    for leftover in folder.parent.glob(f"{_BUILDING}{folder.name}~*"):
        shutil.rmtree(leftover, ignore_errors=True)


def library_versions() -> dict[str, str]:
    """Versions of packhorse and of the libraries that decide what it makes and answers."""
    found = {"packhorse": __version__}
    for name in ("torch", "transformers", "tokenizers", "ctranslate2", "gguf"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
