"""SIGINT and SIGTERM: the first one asks a run to stop, the second one ends the process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While entered, turns the first signal into a request that the run asks for.

    on_request: called once, at the first signal. at_once: called at the second, right before the
    process ends with 128 + its number: the last chance to make results durable. Outside the main
    thread signals cannot be handled, and nothing is changed.
    """

    def __init__(
        self, on_request: Callable[[], None], at_once: Callable[[], None] = lambda: None
    ) -> None:
        self.signal_number: int | None = None
        self._on_request = on_request
        self._at_once = at_once
        self._previous: dict[int, Any] = {}

    def requested(self) -> bool:
        return self.signal_number is not None

    def __enter__(self) -> Interruption:
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number = number
            self._on_request()
            return
        try:
            self._at_once()
        finally:
            os._exit(128 + number)
