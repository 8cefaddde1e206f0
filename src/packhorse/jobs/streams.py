"""The standard streams of a process, guarded: printing for people never ends or changes work.

A terminal is closed, a log collector restarts, the disk of a log file is full, a service is started
without streams, a locale knows ASCII only. None of it is a reason to stop a job of hours, so every
process of packhorse (the command line, the engine of a server, probes) runs inside
`guarded_streams`. Libraries that print to `sys.stdout` and `sys.stderr` are covered alike.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

# Besides OSError: ValueError for a stream that was closed, RuntimeError for a signal handler that
# prints in the middle of another print.
_TROUBLE = (OSError, ValueError, RuntimeError)


class GuardedStream:
    """A text stream whose `write` and `flush` never raise for the stream's sake.

    What cannot be written is dropped; the next write is tried again, since a full disk may have
    room by then. Characters that the stream's encoding does not know are written as escapes.
    Everything else is the stream's own.

    failure: the first error of a stream that lost text, None if its reader merely went away.
    """

    def __init__(self, stream: TextIO) -> None:
        self.failure: OSError | None = None
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(
                    text.encode(error.encoding, "backslashreplace").decode(error.encoding)
                )
        except _TROUBLE as error:
            self._note(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except _TROUBLE as error:
            self._note(error)

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except _TROUBLE:
            return False

    def settle(self) -> None:
        """Flushes for the last time. What a broken stream holds back goes nowhere, so that the
        interpreter does not complain of it at its end."""
        self.flush()
        with suppress(*_TROUBLE):
            try:
                self._stream.flush()
            except OSError:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _note(self, error: Exception) -> None:
        reader_left = isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ECONNRESET)
        if self.failure is None and isinstance(error, OSError) and not reader_left:
            self.failure = error


@contextmanager
def guarded_streams() -> Iterator[GuardedStream]:
    """While entered, `sys.stdout` and `sys.stderr` are guarded; yields the former.

    Standard streams that are closed are opened on the null device, so that no file opened later
    gets their descriptors and with it what libraries print.
    """
    _open_closed_descriptors()
    before = (sys.stdin, sys.stdout, sys.stderr)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    out, err = map(_guarded, before[1:])
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        out.settle()
        err.settle()
        sys.stdin, sys.stdout, sys.stderr = before


def _guarded(stream: TextIO | None) -> GuardedStream:
    return GuardedStream(
        stream or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123
    )


def _open_closed_descriptors() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest descriptor that is free: this one
