"""Cache of fetched and converted models, verified each time an entry is used.

    $PACKHORSE_HOME/
        smollm2-135m-instruct-hf-0123456789ab/    an entry: its key is in its name
            packhorse-manifest.json               written last: key, sizes, sha256, versions
        .locks/<entry>.lock                       held while an entry is built
        .building~<entry>~<random>/               an entry being built; renamed when complete

Digests of files that kept inode, size and times are not computed again (`hashing`). An altered or
incomplete entry is never used; it is reported and built again.
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

from packhorse import __version__
from packhorse.engine_protocol.registry import ModelKind
from packhorse.errors import ModelError
from packhorse.models.hashing import file_sha256, fingerprint, verify_all
from packhorse.models.prepared import Report
from packhorse.models.storage import storage_errors
from packhorse.storage.atomic_files import sync_folder
from packhorse.storage.cache_folder import cache_root
from packhorse.storage.json_files import decode, read_object

FORMAT = 1
MANIFEST = "packhorse-manifest.json"
REFERENCE_LOGITS = "reference_logits.npz"
"""File that checks a model and affects none of its results, see `reference_logits`."""
_BUILDING = ".building~"

Build = Callable[[Path, Path], None]
"""Fills an empty folder (first argument); the second is scratch space, removed afterwards."""


def slug(model: str) -> str:
    """Return the name of a model as a part of a file name."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "-" for c in model)
    return kept.lower().strip(".-_")[:60] or "model"


@dataclass(frozen=True, slots=True)
class Key:
    """What an entry is built from, and how; equal keys share an entry.

    Attributes:
        model: Name of the model, for the name of the folder.
        kind: Form of the folder.
        variant: "hf" or a quantization, for the name of the folder.
        quantization: Number format of the weights.
        origin: Digest or pinned location of the source, and the versions that affect the result.
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
    """A verified entry.

    Attributes:
        folder: Folder of the entry.
        digests: File name -> sha256 of every file.
        size_bytes: Size of all files (bytes).
    """

    folder: Path
    digests: Mapping[str, str]
    size_bytes: int

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all files that affect results.

        Reference logits are left out: they only check, and their last bits differ between machines.
        """
        return fingerprint({n: d for n, d in self.digests.items() if n != REFERENCE_LOGITS})


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A line of `packhorse models`; `verified` is None if the entry was not checked."""

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
    """The part of a `Key` that is read from a manifest."""

    model: str
    kind: str
    quantization: str


@dataclass(frozen=True, slots=True)
class _Manifest:
    """The part of a manifest that is read."""

    digest: str
    key: _NamedKey
    files: dict[str, _File]

    @property
    def size_bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    def entry(self, folder: Path) -> Entry:
        digests = {name: file.sha256 for name, file in self.files.items()}
        return Entry(folder, digests, self.size_bytes)


class _UnusableError(Exception):
    """Reason why an entry cannot be used; empty if there is no entry."""


def obtain(key: Key, build: Build, report: Report) -> Entry:
    """Return the verified entry of `key`; build it if it is missing or damaged.

    One process builds an entry, others wait for it. No partial entry is left behind.

    Args:
        key: Key of the entry.
        build: Fills the entry's folder; its exceptions are passed on.
        report: Receives a line if the entry is damaged or another process builds it.

    Raises:
        ModelError: The cache cannot be written.
    """
    folder = cache_root() / key.folder_name
    try:
        return _verify(folder, key)
    except _UnusableError:
        pass  # verified again under the lock, which a read-only cache does not allow
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
    """Return all entries by name; with `verify`, check every byte of them."""
    manifests = sorted(cache_root().glob(f"*/{MANIFEST}"))
    with verify_all():
        return [_describe(manifest.parent, verify) for manifest in manifests]


def _describe(folder: Path, verify: bool) -> CachedModel:
    try:
        manifest = _read_manifest(folder)
    except _UnusableError:
        return CachedModel(folder.name, "unreadable", "", folder, 0, False)
    verified = None
    if verify:
        try:
            _verify_files(folder, manifest)
            verified = True
        except _UnusableError:
            verified = False
    key, size = manifest.key, manifest.size_bytes
    return CachedModel(key.model, key.kind, key.quantization, folder, size, verified)


def _verify(folder: Path, key: Key) -> Entry:
    if not folder.is_dir():
        raise _UnusableError
    manifest = _read_manifest(folder)
    if manifest.digest != key.digest:
        raise _UnusableError(f"{MANIFEST} belongs to something else")
    return _verify_files(folder, manifest)


def _read_manifest(folder: Path) -> _Manifest:
    try:
        document = read_object(folder / MANIFEST, allow_nan=False)
    except ModelError:
        raise _UnusableError(f"it has no readable {MANIFEST}") from None
    if document.get("format") != FORMAT:
        raise _UnusableError(f"{MANIFEST} has another format")
    try:
        manifest: _Manifest = decode(_Manifest, document, MANIFEST)
    except ValueError as error:
        raise _UnusableError(str(error)) from None
    return manifest


def _verify_files(folder: Path, manifest: _Manifest) -> Entry:
    """Check that every listed file has its size and digest, and that there is no other."""
    expected = manifest.files
    try:
        found = _sizes(folder)
        for name in sorted(expected.keys() | found.keys()):
            if name not in found:
                raise _UnusableError(f"{name} is missing")
            if name not in expected:
                raise _UnusableError(f"{name} does not belong to it")
            if found[name] != expected[name].bytes:
                raise _UnusableError(f"{name} has another size")
        for name, record in expected.items():
            if file_sha256(folder / name) != record.sha256:
                raise _UnusableError(f"{name} was altered")
    except OSError as error:
        raise _UnusableError(str(error)) from error
    return manifest.entry(folder)


def _build(folder: Path, key: Key, build: Build) -> Entry:
    prefix = f"{_BUILDING}{folder.name}~"
    workspace = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        contents, scratch = workspace / "entry", workspace / "scratch"
        contents.mkdir()
        scratch.mkdir()
        build(contents, scratch)
        manifest = _write_manifest(contents, key)
        if folder.exists():
            folder.rename(workspace / "damaged")
        contents.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return manifest.entry(folder)


def _write_manifest(contents: Path, key: Key) -> _Manifest:
    """Write the manifest, sync all files, and give them the permissions of a new file."""
    files = {
        name: _File(size, file_sha256(contents / name))
        for name, size in sorted(_sizes(contents).items())
    }
    document = {
        "format": FORMAT,
        "digest": key.digest,
        "key": asdict(key),
        "versions": library_versions(),
        "files": {name: asdict(file) for name, file in files.items()},
    }
    path = contents / MANIFEST
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    mode = path.stat().st_mode
    for name in files:
        (contents / name).chmod(mode)  # safetensors lets only the owner read
        _sync(contents / name)
    _sync(path)
    sync_folder(contents)
    return _Manifest(key.digest, _NamedKey(key.model, key.kind, key.quantization), files)


def _sizes(folder: Path) -> dict[str, int]:
    """Return the size of each file but the manifest, by relative path with forward slashes."""
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
    """Hold the lock of an entry; the lock ends with the process that holds it."""
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
    """Remove the leftovers of killed processes; requires the lock of the entry."""
    for leftover in folder.parent.glob(f"{_BUILDING}{folder.name}~*"):
        shutil.rmtree(leftover, ignore_errors=True)


def library_versions() -> dict[str, str]:
    """Return the versions of packhorse and of the libraries that affect its results."""
    found = {"packhorse": __version__}
    for name in ("torch", "transformers", "tokenizers", "ctranslate2", "gguf"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
