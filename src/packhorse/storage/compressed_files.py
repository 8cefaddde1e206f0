"""Files that are compressed as a whole: gzip, bzip2, xz and Zstandard, by the suffix of the name.

They are read and written as streams, never unpacked to a disk.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from packhorse.errors import InputError

_BUFFER_BYTES = 2**20
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


@dataclass(frozen=True, slots=True)
class Compression:
    """A compression of whole files.

    Attributes:
        name: Its name.
        suffixes: Endings of names of such files.
        magic: First bytes of such files.
        command: Command that writes the content to standard output.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: bytes
    command: str

    def begins(self, head: bytes) -> bool:
        """Return whether a file with these first bytes is compressed so."""
        is_bzip2 = self.magic != b"BZh" or head[4:10] == b"1AY&SY"
        return head.startswith(self.magic) and is_bzip2


COMPRESSIONS = (
    Compression("gzip", (".gz", ".gzip"), b"\x1f\x8b\x08", "zcat"),
    Compression("bzip2", (".bz2",), b"BZh", "bzcat"),
    Compression("xz", (".xz",), b"\xfd7zXZ\0", "xzcat"),
    Compression("zstd", (".zst", ".zstd"), b"\x28\xb5\x2f\xfd", "zstdcat"),
)
OUTPUT_COMPRESSIONS = (".gz", ".zst")
"""Suffixes of outputs that are compressed."""


def compression_named(path: Path) -> Compression | None:
    """Return the compression that the suffix of a name stands for."""
    suffix = path.suffix.lower()
    return next((each for each in COMPRESSIONS if suffix in each.suffixes), None)


def content_suffix(path: Path) -> str:
    """Return the suffix of the content, in lower case: ".jsonl" of rows.jsonl and rows.jsonl.gz."""
    inner = Path(path.stem) if compression_named(path) else path
    return inner.suffix.lower()


def open_content(path: Path, buffering: int = _BUFFER_BYTES) -> BinaryIO:
    """Open a file for reading; one whose name says that it is compressed is decompressed.

    Raises:
        OSError: The file cannot be opened.
        InputError: Also while reading: what was compressed is damaged or not complete.
    """
    compression = compression_named(path)
    if compression is None:
        return path.open("rb", buffering=buffering)
    return io.BufferedReader(_Content(path, compression), _BUFFER_BYTES)


class _Content(io.RawIOBase):
    """The content of a compressed file."""

    def __init__(self, path: Path, compression: Compression) -> None:
        self._path, self._compression = path, compression
        self._size = 0
        self._file: Any = None
        self._start()

    def _start(self) -> None:
        self._file, self._size = _opened(self._path, self._compression.name), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go back to the start, or to where it is; a stream goes nowhere else."""
        if whence == io.SEEK_SET and offset == 0:
            self._file.close()
            self._start()
        elif not (whence == io.SEEK_CUR and offset == 0) and (whence, offset) != (0, self._size):
            raise io.UnsupportedOperation("a compressed file is read from its start")
        return self._size

    def readinto(self, buffer: Any) -> int:
        try:
            part = self._file.read(len(buffer))
        except _DAMAGED as error:
            raise InputError(
                f"{self._path} is damaged after {self._size:,} bytes of its content, as "
                f"{self._compression.name} unpacks it: {error}",
                "copy or download it again",
            ) from error
        buffer[: len(part)] = part
        self._size += len(part)
        return len(part)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def _opened(path: Path, name: str) -> Any:
    if name == "gzip":
        return gzip.open(path)
    if name == "bzip2":
        return bz2.open(path)
    if name == "xz":
        return lzma.open(path)
    import pyarrow as pa

    with path.open("rb"):  # for the usual errors
        pass
    return pa.CompressedInputStream(pa.OSFile(str(path), "rb"), name)


@contextmanager
def compressed(file: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """Give a stream to write to that compresses into `file` if the name `path` says so.

    Equal content gives equal bytes.
    """
    compression = compression_named(path)
    if compression is None:
        yield file
    elif compression.name == "gzip":
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            yield cast(IO[bytes], packed)
    else:
        import pyarrow as pa

        target = pa.PythonFile(_Writer(file), "w")  # that `file` stays open
        with pa.CompressedOutputStream(target, compression.name) as stream:
            buffered = io.BufferedWriter(_Writer(stream), _BUFFER_BYTES)
            yield cast(IO[bytes], buffered)
            buffered.flush()


class _Writer(io.RawIOBase):
    """Writes to another stream, which stays open when this one is closed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._stream.write(part)
        return len(part)
