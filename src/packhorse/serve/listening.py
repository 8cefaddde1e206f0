"""The listening socket, and how many connections the limit of open files allows."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Callable
from typing import Any

from packhorse.errors import ConfigError

QUEUED_CONNECTIONS = 2048
"""That the kernel holds until they are accepted."""
_OTHER_FILES = 256
"""Kept free of connections, where the limit allows it: uploads, journals, the engine's process."""
_FEWEST_FILES = 32
_MAX_ACCEPT_BATCH = 64
_NO_FILES_LEFT = "socket.accept() out of system resource"
"""How asyncio calls an accept that failed with EMFILE and the like; it tries again a second
later."""


class ListeningSocket(socket.socket):
    """A socket with a backlog of QUEUED_CONNECTIONS, whatever `listen` is given.

    asyncio uses one number for the backlog and for the connections accepted per event-loop step.
    """

    def listen(self, backlog: int = QUEUED_CONNECTIONS, /) -> None:
        super().listen(max(backlog, QUEUED_CONNECTIONS))


def listen(host: str, port: int) -> ListeningSocket:
    """Return a listening socket. Raises ConfigError if the address cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = ListeningSocket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}",
            "choose another --port or --host",
        ) from error
    return listener


def allowed_connections(wanted: int) -> int:
    """Raise the limit of open files as far as `wanted` connections need; return how many fit.

    Raises ConfigError for a limit that is too low to serve at all.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < _FEWEST_FILES:
        raise ConfigError(
            f"this process may open {soft} files at once, and a server needs {_FEWEST_FILES}",
            "raise the limit: ulimit -n 4096",
        )
    return min(wanted, soft - min(_OTHER_FILES, soft // 2))


def accept_batch_size(connections: int) -> int:
    """How many connections to accept before those that are too many are closed again: few enough
    for the files that are kept free."""
    return max(1, min(_MAX_ACCEPT_BATCH, connections // 4))


def report_exhaustion_once(report: Callable[[str], None]) -> None:
    """Have the running event loop say once, in one line, that no file descriptor is left for a
    connection, instead of a traceback for each attempt."""
    is_told = False

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal is_told
        if context.get("message") != _NO_FILES_LEFT:
            loop.default_exception_handler(context)
        elif not is_told:
            is_told = True
            report(
                f"a connection cannot be accepted: {context['exception'].strerror}; others wait "
                "until files are closed (said once; raise the limit: ulimit -n)"
            )

    asyncio.get_running_loop().set_exception_handler(handle)


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
