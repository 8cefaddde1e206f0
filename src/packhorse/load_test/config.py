"""What a load test is: frozen, inert. The command line reads its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from packhorse.config import InputConfig


@dataclass(frozen=True, slots=True)
class Goals:
    """What makes an answer a good one (seconds, from when its request was due); None is any.

    first_token: to its first text. answer: to its end. per_token: between tokens, on average.
    """

    first_token: float | None = None
    answer: float | None = None
    per_token: float | None = None


@dataclass(frozen=True, slots=True)
class LoadTestConfig:
    """One test of a server.

    url: of the server, without /v1. input: rows as `packhorse run` reads them, taken in order and
    from the start again. rates: requests a second, one trial each; infinity sends all at once.
    requests: of a trial. max_new_tokens: of rows that bring none; None leaves it to the server.
    seed: of the poisson_arrivals. timeout_seconds: after which a request counts as an error.
    """

    url: str
    input: Path
    rates: tuple[float, ...] = (1.0,)
    requests: int = 100
    max_new_tokens: int | None = None
    seed: int = 0
    goals: Goals = field(default_factory=Goals)
    reading: InputConfig = field(default_factory=InputConfig)
    timeout_seconds: float = 600.0
    api_key: str | None = None
