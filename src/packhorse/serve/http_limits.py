"""Time and connection limits for uvicorn's HTTP/1.1 protocol.

It subclasses uvicorn's `H11Protocol` because uvicorn has no hook for this: no timeout for headers
or for a client that stops reading, and plain-text answers to excess connections and invalid HTTP.
An ASGI middleware sees a request only after its headers. Tests fail if the base class changes.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import sys
import termios
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from packhorse.serve.config import RequestLimits
from packhorse.serve.errors import APIError

CHECKS_PER_TIMEOUT = 8
"""Checks of a client with unread data within the time limit."""


class LimitedHTTPProtocol(H11Protocol):
    """See `limited_protocol`."""

    limits: ClassVar[RequestLimits]
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        watched: Any = WatchedTransport(transport, self.loop, self.limits.write_seconds)
        super().connection_made(watched)
        if len(self.connections) > self.limits.connections:
            self._refuse(
                APIError(503, "too_many_connections", "too many connections", retry_after=1)
            )
            return
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._start_header_timer()
        else:
            self._stop_header_timer()

    def send_400_response(self, msg: str) -> None:
        self._refuse(APIError(400, "invalid_http", "this is not HTTP/1.1 as it should be"))

    def _start_header_timer(self) -> None:
        """Start the timer unless it runs; further bytes do not restart it."""
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(
                self.limits.header_seconds, self._on_header_timeout
            )

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_header_timeout(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self._refuse(APIError(408, "request_timeout", "the headers took too long"))

    def _refuse(self, problem: APIError) -> None:
        """Send an error on a connection without a request, and close it."""
        body = json.dumps(problem.to_json()).encode()
        headers = {
            **problem.headers(),
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(f"HTTP/1.1 {problem.status} Refused\r\n{lines}\r\n".encode() + body)
        self.transport.close()


class WatchedTransport:
    """A transport that aborts its connection if the client reads nothing for `seconds`.

    This holds for connections in use, idle or closing (a closing transport would wait for unsent
    data without a limit). Bytes received are those written, less those in the transport's buffer
    and, if the system reports it, in the socket's send buffer. The latter has megabytes and is only
    refilled when half empty: without it, a slow client that never pauses would look stalled.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._transport, self._loop, self._seconds = transport, loop, seconds
        self._written = self._taken = 0
        self._received_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def write(self, data: bytes) -> None:
        self._transport.write(data)
        self._written += len(data)
        if self._timer is None and self._transport.get_write_buffer_size():
            self._taken, self._received_at = self._count_received(), self._loop.time()
            self._schedule_check()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _schedule_check(self) -> None:
        self._timer = self._loop.call_later(self._seconds / CHECKS_PER_TIMEOUT, self._check)

    def _check(self) -> None:
        self._timer = None
        if not self._transport.get_write_buffer_size():
            return
        taken = self._count_received()
        if taken > self._taken:
            self._taken, self._received_at = taken, self._loop.time()
        elif self._loop.time() - self._received_at >= self._seconds:
            self._transport.abort()
            return
        self._schedule_check()

    def _count_received(self) -> int:
        left: int = self._transport.get_write_buffer_size()
        return self._written - left - unsent_bytes(self._transport.get_extra_info("socket"))


def unsent_bytes(connection: Any) -> int:
    """Return the unacknowledged bytes in a socket's send buffer; 0 if the system does not report
    them."""
    held = bytearray(4)
    try:
        fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, held)
    except OSError:
        return 0
    return int.from_bytes(held, sys.byteorder)


def limited_protocol(limits: RequestLimits) -> type[LimitedHTTPProtocol]:
    """Return the protocol class for `uvicorn.Config(http=...)`."""
    return type("LimitedHTTPProtocol", (LimitedHTTPProtocol,), {"limits": limits})
