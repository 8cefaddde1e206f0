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

    first_token: float | None = field(
        default=None,
        metadata={
            "flags": ("--goal-first-token-ms",),
            "metavar": "MS",
            "scale": 1e-3,
            "help": "maximum time to the first token of a good answer",
        },
    )
    answer: float | None = field(
        default=None,
        metadata={
            "flags": ("--goal-answer-ms",),
            "metavar": "MS",
            "scale": 1e-3,
            "help": "maximum time to the end of a good answer",
        },
    )
    per_token: float | None = field(
        default=None,
        metadata={
            "flags": ("--goal-per-token-ms",),
            "metavar": "MS",
            "scale": 1e-3,
            "help": "maximum mean time between the tokens of a good answer",
        },
    )


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

    url: str = field(metadata={"help": "address of the server, e.g. http://127.0.0.1:8000"})
    input: Path = field(metadata={"help": "file of rows to send, in any format that run reads"})
    rates: tuple[float, ...] = field(
        default=(1.0,),
        metadata={
            "flags": ("--rate",),
            "metavar": "R",
            "help": "send R requests per second; several rates are tried in turn, inf sends all "
            "at once",
        },
    )
    requests: int = field(default=100, metadata={"help": "send N requests per rate"})
    max_new_tokens: int | None = field(
        default=None,
        metadata={
            "help": "generate at most N tokens per row that does not set it",
            "default": "set by the server",
        },
    )
    seed: int = field(default=0, metadata={"help": "seed of the Poisson arrivals"})
    goals: Goals = field(default_factory=Goals)
    reading: InputConfig = field(default_factory=InputConfig)
    timeout_seconds: float = 600.0
    api_key: str | None = None
