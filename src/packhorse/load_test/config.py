"""Options of a load test. The command line reads its defaults from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from packhorse.config import InputConfig


@dataclass(frozen=True, slots=True)
class Goals:
    """Latency goals (SLOs) in seconds, from when a request was due; None is no goal.

    Attributes:
        first_token: time to first token.
        answer: end-to-end latency.
        per_token: mean time per output token after the first.
    """

    first_token: float | None = None
    answer: float | None = None
    per_token: float | None = None


@dataclass(frozen=True, slots=True)
class LoadTestConfig:
    """One load test.

    Attributes:
        url: of the server, without /v1.
        input: rows as `packhorse run` reads them, sent in order and cycled.
        rates: requests per second, one trial each; infinity sends all at once.
        requests: requests per trial.
        max_new_tokens: for rows that set none; None leaves it to the server.
        seed: of the arrival times.
        timeout_seconds: a request that takes longer counts as an error.
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
