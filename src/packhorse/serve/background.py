"""Tasks that run as long as the server does; one that ends before is a fault that shows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_LOGGER = logging.getLogger(__name__)


@dataclass(slots=True)
class BackgroundTasks:
    """Watched tasks. report: gets a line for each that fails. failed: names of those that did, for
    /health/ready and the exit code."""

    report: Callable[[str], None] = lambda text: None
    failed: list[str] = field(default_factory=list)

    def watch(self, name: str, task: asyncio.Task[Any]) -> None:
        """name: of the task, as people read it."""
        task.add_done_callback(lambda ended: self._note(name, ended))

    def _note(self, name: str, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            return
        self.failed.append(name)  # first: the rest is for people
        error = task.exception()
        why = f"{type(error).__name__}: {error}" if error else "it returned"
        self.report(f"{name} stopped, which it must not ({why}); restart the server")
        if error is not None:
            _LOGGER.debug("%s stopped", name, exc_info=error)


async def wait_until_idle(idle: asyncio.Event, seconds: float, force_exit: asyncio.Event) -> bool:
    """Wait for `idle`, at most `seconds` or until `force_exit`; return whether it was set."""
    waits = [asyncio.create_task(each.wait()) for each in (idle, force_exit)]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    return idle.is_set()
