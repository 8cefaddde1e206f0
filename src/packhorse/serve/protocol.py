"""HTTP/1.1 as uvicorn speaks it, with bounds on peers that are slow or many.

uvicorn gives a peer any time to send its headers and to take its answer, and refuses what is no
HTTP in plain text.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from packhorse.serve.config import Bounds
from packhorse.serve.problems import Problem


class BoundedProtocol(H11Protocol):
    """See `bounded_protocol`."""

    bounds: ClassVar[Bounds]
    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.bounds.connections:
            self._refuse(
                Problem(503, "too_many_connections", "too many connections", retry_after=1)
            )
            return
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_headers()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._await_headers()
        else:
            self._forget_headers()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Problem(400, "invalid_http", "this is not HTTP/1.1 as it should be"))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(
                self.bounds.write_seconds, self.transport.abort
            )

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def _await_headers(self) -> None:
        """A timer that further bytes do not start anew."""
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(
                self.bounds.header_seconds, self._give_up_on_headers
            )

    def _forget_headers(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up_on_headers(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self._refuse(Problem(408, "request_timeout", "the headers took too long"))

    def _refuse(self, problem: Problem) -> None:
        """Answers on a connection that has no request, and closes it."""
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


def bounded_protocol(bounds: Bounds) -> type[BoundedProtocol]:
    """The protocol class for `uvicorn.Config(http=...)`."""
    return type("BoundedProtocol", (BoundedProtocol,), {"bounds": bounds})
