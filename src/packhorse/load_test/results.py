"""Summarize the results of requests. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from packhorse.load_test.client import RequestResult
from packhorse.load_test.config import Goals
from packhorse.profiling.run_metrics import quantile

KNEE_SHARE = 0.95
KNEE_SLOWDOWN = 3.0


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles in seconds; p99 of fewer than 100 values is None."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Trial:
    """Measurements at one rate. Latencies count from when a request was due.

    Attributes:
        rate: configured requests per second.
        arrival_rate: requests per second as drawn.
        answered: requests with a complete answer.
        errors: number of failed requests by error.
        good: answers within all goals.
        seconds: from the first arrival to the last answer.
        tokens: of all answers; None if the server did not count the tokens of each.
        late: longest delay between due and sent (seconds). If it is large, the client is the
            bottleneck.
    """

    rate: float
    arrival_rate: float | None
    requests: int
    answered: int
    errors: dict[str, int]
    good: int
    seconds: float
    tokens: int | None
    first_token: Quantiles
    answer: Quantiles
    per_token: Quantiles
    late: float

    @property
    def answers_per_second(self) -> float:
        return self.answered / self.seconds if self.seconds else 0.0

    @property
    def goodput(self) -> float:
        """Good answers per second."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float | None:
        if self.tokens is None:
            return None
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "rate": None if self.rate == float("inf") else self.rate,
            "answers_per_second": self.answers_per_second,
            "goodput": self.goodput,
            "tokens_per_second": self.tokens_per_second,
        }


def summarize(rate: float, replies: Sequence[RequestResult], goals: Goals) -> Trial:
    answered = [reply for reply in replies if reply.finished is not None]
    counts = [reply.tokens for reply in answered if reply.tokens is not None]
    span = max((reply.due for reply in replies), default=0.0)
    return Trial(
        rate=rate,
        arrival_rate=(len(replies) - 1) / span if span else None,
        requests=len(replies),
        answered=len(answered),
        errors=dict(Counter(reply.error for reply in replies if reply.finished is None)),
        good=sum(_meets_goals(reply, goals) for reply in answered),
        seconds=max((reply.finished or 0.0 for reply in answered), default=0.0),
        tokens=sum(counts) if len(counts) == len(answered) else None,
        first_token=_quantiles(_ttft(reply) for reply in answered),
        answer=_quantiles(_latency(reply) for reply in answered),
        per_token=_quantiles(_per_token(reply) for reply in answered),
        late=max((reply.sent - reply.due for reply in replies), default=0.0),
    )


def knee(trials: Iterable[Trial], goals: Goals) -> Trial | None:
    """Return the trial with the highest rate that the server sustains; None if there is none.

    With goals: KNEE_SHARE of the requests are answered within them. Without: nothing failed, and
    the p95 of answers is at most KNEE_SLOWDOWN times that at the lowest rate.
    """
    ordered = sorted(trials, key=lambda trial: trial.rate)
    has_goals = goals != Goals()
    lowest = ordered[0].answer.p95 if ordered else None

    def keeps_up(trial: Trial) -> bool:
        if has_goals:
            return trial.good >= KNEE_SHARE * trial.requests
        p95 = trial.answer.p95
        is_slow = lowest is None or p95 is None or p95 > KNEE_SLOWDOWN * lowest
        return trial.answered == trial.requests and not is_slow

    found = None
    for trial in ordered:
        if not keeps_up(trial):
            break
        found = trial
    return found


def _ttft(reply: RequestResult) -> float | None:
    return None if reply.first_token is None else reply.first_token - reply.due


def _latency(reply: RequestResult) -> float | None:
    return None if reply.finished is None else reply.finished - reply.due


def _per_token(reply: RequestResult) -> float | None:
    tokens = reply.tokens or 0
    if reply.first_token is None or reply.finished is None or tokens < 2:
        return None
    return (reply.finished - reply.first_token) / (tokens - 1)


def _meets_goals(reply: RequestResult, goals: Goals) -> bool:
    """Return whether all goals are met. A goal that cannot be measured is not met; an answer of one
    token has no time per token."""
    is_one_token = reply.tokens is not None and reply.tokens < 2
    measured = [
        (_ttft(reply), goals.first_token),
        (_latency(reply), goals.answer),
        (_per_token(reply), None if is_one_token else goals.per_token),
    ]
    return all(goal is None or (value is not None and value <= goal) for value, goal in measured)


def _quantiles(values: Iterable[float | None]) -> Quantiles:
    ordered = sorted(value for value in values if value is not None)
    p99 = quantile(ordered, 0.99) if len(ordered) >= 100 else None
    return Quantiles(quantile(ordered, 0.5), quantile(ordered, 0.95), p99)
