"""How long an end may take."""

from __future__ import annotations

import asyncio


async def is_idle_in_time(idle: asyncio.Event, seconds: float, hurried: asyncio.Event) -> bool:
    """QueueConfig for `idle`, for so long and until `hurried` is set; whether it came to be set."""
    waits = [asyncio.create_task(each.wait()) for each in (idle, hurried)]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    return idle.is_set()
