"""Files behind URLs, through fsspec: download, upload, verify. Credentials are its libraries' own.

A downloaded file is one whole version of the remote file; an uploaded file is compared with what
was sent. What may pass (a lost connection, a busy server) is tried again; what will not (a missing
file, a refused login) is reported at once. Secrets in URLs are in no message and in no stored file.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b, file_digest, md5
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from packhorse.errors import ConfigError, InputError, OutputError, PackhorseError, first_line
from packhorse.storage.atomic_files import hint_for, write_json
from packhorse.storage.json_files import read_object
from packhorse.storage.retries import Report, is_not_found, retried
from packhorse.storage.urls import (
    base_name,
    digest_of_url,
    is_url,
    public_name,
    scheme_of,
    without_secrets,
)

REMOTE_EXTRA = "pip install 'packhorse[remote]'"
_CHUNK_BYTES = 4 * 2**20
_HTTP_PART_BYTES = 2**16
"""aiohttp drops what it has received but not yet handed out when a connection is lost."""
_LIBRARIES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("ssh", "sftp"), "paramiko"),
    "hf": "huggingface_hub",
}
_IN_EXTRA = ("s3fs", "aiohttp", "huggingface_hub")
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf")
"""Schemes of stores in which a file appears whole or not at all, and folders need not exist."""
_READ_ONLY = ("http", "https")
_VERSION = (
    "ETag", "etag", "Content-MD5", "content_md5", "Digest", "md5Hash", "md5", "crc32c",
    "generation", "blob_id", "Last-Modified", "LastModified", "last_modified", "updated", "created",
    "mtime",
)  # fmt: skip
_MD5 = ("ETag", "etag", "Content-MD5", "content_md5", "md5Hash", "md5")


@dataclass(frozen=True, slots=True)
class Version:
    """What tells versions of a remote file apart.

    Attributes:
        size: Bytes; None if the server does not say.
        tag: Checksums, generation and time of change; None if the server gives none.
    """

    size: int | None
    tag: str | None


def check_url(url: str, *, is_output: bool = False) -> None:
    """Check that files at such a URL can be opened, without connecting.

    Raises:
        ConfigError: The scheme is unknown, its library is not installed, or it cannot be written
            to.
    """
    if is_output and scheme_of(url) in _READ_ONLY:
        raise ConfigError(
            f"{public_name(url)} cannot be written to: {scheme_of(url)}:// URLs are inputs only",
            "name a file, or a URL of an object store: s3://, gs://, az://",
        )
    if not base_name(url):
        raise ConfigError(f"{public_name(url)} names no file", "end the URL in the name of a file")
    _open(url)


def download(url: str, folder: Path, report: Report) -> Path:
    """Copy a remote file into a folder, unless the copy of its version is there; return the copy.

    A copy that was cut short is continued if the server names the version and it is the same one.

    Args:
        url: URL of the file.
        folder: Folder that holds downloads; it is created.
        report: Takes a line about what happens.

    Raises:
        ConfigError: As `check_url`.
        InputError: The file cannot be read; what was copied is kept.
        OutputError: The copy cannot be written.
    """
    fs, path = _open(url)
    copy, name = copy_of(url, folder), public_name(url)
    what = f"{name} cannot be read"
    try:
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{copy.parent} cannot be created: {error.strerror}") from error
    known = _known(copy)
    is_whole = "digest" in known and copy.is_file() and _digest(copy) == known["digest"]
    try:
        version = retried(what, lambda: _version(fs, path), report)
    except InputError as error:
        if not is_whole or isinstance(error.__cause__, FileNotFoundError):
            raise
        report(f"{error}; using the copy that was downloaded before")
        return copy
    is_same = known.get("size") == version.size and known.get("tag") == version.tag
    if is_whole and is_same and version.tag is not None:
        return copy
    if "digest" in known and not is_same:
        report(f"{name} has changed since it was downloaded")
    size = "of unknown size" if version.size is None else _bytes(version.size)
    report(f"downloading {name}, {size}")
    partial = _partial(copy)
    if "digest" in known or not is_same or version.tag is None:
        _start_over(copy, version)
    retried(
        what,
        lambda: _copy(fs, path, version, copy),
        report,
        progress=lambda: partial.stat().st_size if partial.exists() else 0,
    )
    return copy


def copy_of(url: str, folder: Path) -> Path:
    """Return the path of the copy of a remote file in a folder of downloads."""
    return folder / digest_of_url(url) / base_name(url)


def version_of_copy(copy: Path) -> str | None:
    """Return checksums or time of change of the remote file that was copied."""
    tag = _known(copy).get("tag")
    return None if tag is None else str(tag)


@contextmanager
def local_input(source: str, report: Report) -> Iterator[Path]:
    """Give the path of an input; a remote one is copied into a folder that is removed at the end.

    Raises:
        ConfigError, InputError, OutputError: As `download`.
    """
    if not is_url(source):
        yield Path(source)
        return
    check_url(source)
    with TemporaryDirectory(prefix="packhorse-") as folder:
        copy = download(source, Path(folder), report)
        with named_by_url(copy, source):
            yield copy


@contextmanager
def named_by_url(copy: Path, url: str) -> Iterator[None]:
    """Let errors name the URL of a remote file, not its copy."""
    try:
        yield
    except PackhorseError as error:
        error.args = tuple(
            each.replace(str(copy), public_name(url)) if isinstance(each, str) else each
            for each in error.args
        )
        raise


def check_target(url: str, report: Report) -> bool:
    """Return whether there is a file at a URL that will be written to.

    Raises:
        OutputError: Its bucket does not exist, a login is missing, or the network is lost.
    """
    fs, path = _open(url)
    bucket = path.strip("/").partition("/")[0]

    def is_there() -> bool:
        try:
            return str(_info(fs, path).get("type")) != "directory"
        except FileNotFoundError as error:
            if is_not_found(error) and scheme_of(url) in _OBJECT_STORES and scheme_of(url) != "hf":
                with suppress(PermissionError):
                    _info(fs, bucket)
            elif not is_not_found(error):
                raise
            return False
        except PermissionError:  # writing may be allowed where reading is not
            return False

    return retried(f"{public_name(url)} cannot be written", is_there, report, OutputError)


def upload(file: Path, url: str, report: Report) -> Version:
    """Copy a whole file to a URL, verify size and content there, and return its version.

    The content is compared by the MD5 checksum that the store gives, else by reading it back.

    Raises:
        OutputError: It cannot be written, or the network is lost.
    """
    fs, path = _open(url)
    is_store = scheme_of(url) in _OBJECT_STORES
    folder, _, name = path.rpartition("/")
    target = path if is_store else f"{folder}/.{name}.{digest_of_url(url)}.partial"

    def put() -> Version:
        if not is_store and folder:
            fs.makedirs(folder, exist_ok=True)
        fs.put_file(str(file), target)
        _verify(fs, target, file)
        if target != path:
            fs.mv(target, path)
        return _version(fs, path)

    report(f"uploading {public_name(url)}, {_bytes(file.stat().st_size)}")
    return retried(f"{public_name(url)} cannot be written", put, report, OutputError)


def upload_once(file: Path, url: str, record: Path, report: Report) -> None:
    """Upload a file, unless `record` says that it is there already. Raises OutputError."""
    fs, path = _open(url)
    digest = _digest(file)
    with suppress(Exception):  # then it is uploaded, which reports errors
        if read_object(record) == {"digest": digest, **asdict(_version(fs, path))}:
            report(f"{public_name(url)} is there already")
            return
    write_json(record, {"digest": digest, **asdict(upload(file, url, report))})


def _open(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it. Raises ConfigError."""
    scheme = scheme_of(url)
    library = _LIBRARIES.get(scheme)
    try:
        import fsspec
        import fsspec.core

        if library is not None:
            import_module(library)
        options: dict[str, Any] = {}
        if scheme in _READ_ONLY:
            import aiohttp

            # By default aiohttp ends every request after five minutes, and ignores proxies.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        needed = library or "a library"
        extra = "" if library is None or library in _IN_EXTRA else f" {library}"
        raise ConfigError(
            f"{scheme}:// needs {needed}, which is not installed ({first_line(error)})",
            f"install it: {REMOTE_EXTRA}{extra}",
        ) from error
    except ValueError as error:
        reason = without_secrets(first_line(error))
        raise ConfigError(
            f"{public_name(url)} cannot be opened: {reason}",
            "use s3://, gs://, az://, hf://datasets/..., https:// or another scheme of fsspec",
        ) from error
    return fs, str(path)


def _info(fs: Any, path: str) -> dict[str, Any]:
    """Return what the server says about a file now."""
    with suppress(Exception):
        fs.invalidate_cache()
    return dict(fs.info(path))


def _version(fs: Any, path: str) -> Version:
    info = _info(fs, path)
    if info.get("type") == "directory":
        raise IsADirectoryError("it is a folder; name a file inside it")
    tags = [f"{name}={info[name]}" for name in _VERSION if info.get(name) is not None]
    size = info.get("size")
    return Version(None if size is None else int(size), " ".join(tags) or None)


def _known(copy: Path) -> dict[str, Any]:
    """Return what is stored about a copy: its version, and its digest once it is whole."""
    with suppress(PackhorseError):
        return dict(read_object(_facts(copy)))
    return {}


def _facts(copy: Path) -> Path:
    return copy.parent / "version.json"


def _partial(copy: Path) -> Path:
    return copy.parent / "partial"


def _start_over(copy: Path, version: Version) -> None:
    with suppress(FileNotFoundError):
        _partial(copy).unlink()
    write_json(_facts(copy), asdict(version))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()


def _copy(fs: Any, path: str, version: Version, copy: Path) -> None:
    """Copy a remote file, or what is missing of it."""
    partial = _partial(copy)
    can_continue = version.tag is not None and version.size is not None
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o600)
    with open(descriptor, "r+b") as target:  # noqa: PTH123 (a descriptor)
        offset = target.seek(0, os.SEEK_END) if can_continue else 0
        if version.size is None or offset != version.size:
            for start, data in _parts(fs, path, version, offset):
                target.seek(start)
                try:
                    target.write(data)
                    target.flush()
                except OSError as error:
                    raise OutputError(
                        f"{partial} cannot be written: {error.strerror}", hint_for(error)
                    ) from error
            target.truncate()
        os.fsync(target.fileno())
    if _version(fs, path) != version:
        partial.unlink()
        raise InputError("it changed while it was downloaded", "run the same command again")
    size = partial.stat().st_size
    if version.size not in (None, size):
        partial.unlink()
        raise ConnectionError(f"{size:,} bytes arrived, not {version.size:,}")
    digest = _digest(partial)
    partial.replace(copy)
    write_json(_facts(copy), {**asdict(version), "digest": digest})


def _parts(fs: Any, path: str, version: Version, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield a remote file from an offset in parts, with the offset of each."""
    part_bytes = _CHUNK_BYTES
    if _is_http(fs):  # one request; a server that knows no ranges sends all of it again
        part_bytes = _HTTP_PART_BYTES
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        source = fs.open(path, "rb", block_size=0, size=version.size, headers=headers)
        source.r.raise_for_status()
        offset = offset if source.r.status == 206 else 0
    else:
        source = fs.open(path, "rb", block_size=2 * _CHUNK_BYTES)
        source.seek(offset)
    with source:
        while data := source.read(part_bytes):
            yield offset, data
            offset += len(data)


def _is_http(fs: Any) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return "http" in protocols


def _verify(fs: Any, path: str, file: Path) -> None:
    """Raise ConnectionError if a remote file is not `file`."""
    info, size = _info(fs, path), file.stat().st_size
    if info.get("size") not in (None, size):
        raise ConnectionError(f"{info['size']:,} bytes arrived there, not {size:,}")
    with file.open("rb") as opened:
        digest = file_digest(opened, lambda: md5(usedforsecurity=False))
    checksums = {digest.hexdigest(), base64.b64encode(digest.digest()).decode()}
    if any(str(info.get(name)).strip('"') in checksums for name in _MD5):
        return
    # Uploads in parts, encrypted ones and other stores have no MD5 checksum of the content.
    content = blake2b(digest_size=16)
    with fs.open(path, "rb", block_size=2 * _CHUNK_BYTES) as source:
        while data := source.read(_CHUNK_BYTES):
            content.update(data)
    if content.hexdigest() != _digest(file):
        raise ConnectionError("what is there differs from what was sent")


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size:,} bytes"
