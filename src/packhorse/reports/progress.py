"""Progress of a verb that writes reports."""

from __future__ import annotations

from typing import Protocol


class StageReporter(Protocol):
    """Is called with one line at the start of each stage."""

    def stage(self, text: str) -> None: ...
