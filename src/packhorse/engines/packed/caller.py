"""One iterator of results of the packed engine, as its run sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from queue import SimpleQueue

from packhorse.engine_protocol import TokenCallback

NEEDS_INPUT = object()
"""Wakes a caller's thread because there is room for more rows."""


@dataclass(slots=True, eq=False)
class Caller:
    """One iterator of results: where the rows come from, and where their results go.

    Attributes:
        on_token: Called with each generated token of its rows.
        results: Results of its rows, NEEDS_INPUT, or an exception to raise.
        has_input: Whether it may bring more rows.
        input_requested: Whether NEEDS_INPUT was sent since it was last asked.
        is_closed: Its rows are not wanted any more.
    """

    on_token: TokenCallback | None = None
    results: SimpleQueue[object] = field(default_factory=SimpleQueue)
    has_input: bool = True
    input_requested: bool = False
    is_closed: bool = False
