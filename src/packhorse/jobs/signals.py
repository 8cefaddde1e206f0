"""SIGINT and SIGTERM: the first one asks a run to stop, the second one ends the process.

While rows are recorded the handler raises nothing, so that an outcome is in the journal completely
or not at all. While a model is fetched, converted or loaded, stop requests are not polled for
minutes; there the first signal raises, and `finally` blocks remove incomplete files.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TypeVar

from packhorse.errors import Interrupted

_Item = TypeVar("_Item")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def sigint_enabled() -> Iterator[None]:
    """While entered, SIGINT raises KeyboardInterrupt even if the parent process ignores it.

    Shells start background jobs with SIGINT ignored (`nohup make &`), and Python leaves it so.
    """
    is_ignored = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    )
    if is_ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if is_ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class SignalGuard:
    """While entered, turns the first signal into a stop request that the run polls.

    Outside the main thread signals cannot be handled, and nothing is changed.

    Args:
        on_request: Called once at the first signal, unless that raises.
        at_once: Called at the second signal, right before the process ends with 128 + its number:
            the last chance to make results durable.
    """

    def __init__(
        self, on_request: Callable[[], None], at_once: Callable[[], None] = lambda: None
    ) -> None:
        self.signal_number: int | None = None
        self._on_request = on_request
        self._at_once = at_once
        self._previous: dict[int, Any] = {}
        self._raises = False
        self._raised = False

    def requested(self) -> bool:
        return self.signal_number is not None

    def check(self) -> None:
        """Raise Interrupted if there was a signal."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)

    def checked(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield the items, with a check before each."""
        for item in items:
            self.check()
            yield item

    @contextmanager
    def raising(self) -> Iterator[None]:
        """While entered, a signal aborts immediately, and Interrupted leaves the guard.

        The handler raises KeyboardInterrupt, which libraries do not catch.
        """
        self.check()
        self._raises = True
        try:
            yield
        finally:
            self._raises = False
        self.check()  # a library may have swallowed it

    def __enter__(self) -> SignalGuard:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._raised and error is not None and not isinstance(error, Interrupted):
            assert self.signal_number is not None
            raise Interrupted(self.signal_number) from error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number = number
            if self._raises:
                self._raised = True
                raise KeyboardInterrupt
            self._on_request()
            return
        try:
            self._at_once()
        finally:
            os._exit(128 + number)
