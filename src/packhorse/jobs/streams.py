"""Guarded standard streams: printing a message never stops or changes a job.

A terminal is closed, a log collector restarts or stops reading, the disk of a log file is full, a
service is started without streams, a locale only has ASCII. None of these may stop a job that runs
for hours, so every packhorse process (the command line, the engine of a server, probes) runs inside
`guarded_streams`. Libraries that print to `sys.stdout` and `sys.stderr` are guarded too.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

# Besides OSError: ValueError for a closed stream, RuntimeError for a signal handler that prints in
# the middle of another print.
_STREAM_ERRORS = (OSError, ValueError, RuntimeError)
_PIECE_CHARACTERS = select.PIPE_BUF // 4
"""At most `PIPE_BUF` bytes in UTF-8: a pipe that `poll` calls writable takes them at once."""
_STDERR_WAIT_SECONDS = 1.0


class GuardedStream:
    """A text stream whose `write` and `flush` never raise because of the stream itself.

    Text that cannot be written is dropped, and the next write is attempted: a full disk may have
    space by then. Characters that the encoding cannot represent are written as escapes. All other
    attributes are those of the wrapped stream.

    Args:
        stream: the stream to write to.
        wait_seconds: how long a write may wait for a full pipe that nobody reads. After that, text
            is dropped without waiting until the pipe has space. None waits indefinitely.

    Attributes:
        failure: the first error by which text was lost, None if there was none or if the reader
            closed the pipe. It stays set even if later writes succeed: the output has a gap.
    """

    def __init__(self, stream: TextIO, wait_seconds: float | None = None) -> None:
        self.failure: OSError | None = None
        self._stream = stream
        self._wait_seconds = wait_seconds
        self._is_blocked = False

    def write(self, text: str) -> int:
        pieces = [text]
        if self._wait_seconds is not None and len(text) > _PIECE_CHARACTERS:
            starts = range(0, len(text), _PIECE_CHARACTERS)
            pieces = [text[start : start + _PIECE_CHARACTERS] for start in starts]
        for piece in pieces:
            if self._would_block():
                break
            self._write(piece)
            if len(pieces) > 1:
                self.flush()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._would_block():
            return
        try:
            self._stream.flush()
        except _STREAM_ERRORS as error:
            self._record(error)

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except _STREAM_ERRORS:
            return False

    def close_out(self) -> None:
        """Flush for the last time; discard what a broken or blocked stream still buffers.

        Without this, the interpreter complains about the stream when it exits.
        """
        self.flush()
        with suppress(*_STREAM_ERRORS):
            try:
                if self._is_blocked:
                    raise BlockingIOError
                self._stream.flush()
            except OSError:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _write(self, text: str) -> None:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(
                    text.encode(error.encoding, "backslashreplace").decode(error.encoding)
                )
        except _STREAM_ERRORS as error:
            self._record(error)

    def _would_block(self) -> bool:
        """Return whether a write has to wait for the reader of a pipe for too long.

        `poll` is used instead of O_NONBLOCK, which would also change the pipe for the processes
        that share it.
        """
        if self._wait_seconds is None:
            return False
        seconds = 0.0 if self._is_blocked else self._wait_seconds
        try:
            poll = select.poll()
            poll.register(self._stream.fileno(), select.POLLOUT)
            self._is_blocked = not poll.poll(seconds * 1000)
        except _STREAM_ERRORS:  # no descriptor: a write raises, or goes to memory
            self._is_blocked = False
        return self._is_blocked

    def _record(self, error: Exception) -> None:
        reader_left = isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ECONNRESET)
        if self.failure is None and isinstance(error, OSError) and not reader_left:
            self.failure = error


@contextmanager
def guarded_streams() -> Iterator[GuardedStream]:
    """Guard `sys.stdout` and `sys.stderr` while entered; yield the former.

    Closed standard streams are opened on the null device. Otherwise a file opened later would get
    their descriptor, and what libraries print would be written into it. Standard error is for
    messages alone, so it drops them if its pipe is full; standard output waits for its reader.
    """
    _open_closed_descriptors()
    before = (sys.stdin, sys.stdout, sys.stderr)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    out = GuardedStream(_buffered(sys.stdout or _null_stream()))
    if sys.stdout is None:
        out.failure = OSError(errno.EBADF, "it is closed")
    err = GuardedStream(_buffered(sys.stderr or _null_stream()), _STDERR_WAIT_SECONDS)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        out.close_out()
        err.close_out()
        sys.stdin, sys.stdout, sys.stderr = before


def _buffered(stream: TextIO) -> TextIO:
    """Return the stream, or a line-buffered one on its descriptor if it has no buffer.

    Without a buffer (PYTHONUNBUFFERED) the text layer ignores that a write took only a part.
    """
    if not isinstance(getattr(stream, "buffer", None), io.RawIOBase):
        return stream
    return open(
        stream.fileno(), "w", buffering=1, encoding=stream.encoding, errors=stream.errors,
        closefd=False,
    )  # fmt: skip


def _null_stream() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123


def _open_closed_descriptors() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: this one
