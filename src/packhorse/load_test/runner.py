"""Run a load test: one trial per rate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from packhorse.data import Request
from packhorse.errors import ConfigError, InputError
from packhorse.inputs import read_rows
from packhorse.load_test.client import (
    client_for,
    has_chat_template,
    poisson_arrivals,
    request_body,
    send_all,
    served_model,
)
from packhorse.load_test.config import LoadTestConfig
from packhorse.load_test.results import Trial, knee, summarize
from packhorse.profiling.hardware import machine

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LoadTest:
    """Result of a load test.

    Attributes:
        model: name of the model on the server.
        rows: number of distinct rows sent.
    """

    config: LoadTestConfig
    model: str
    rows: int
    trials: tuple[Trial, ...]

    @property
    def knee(self) -> Trial | None:
        return knee(self.trials, self.config.goals)

    def to_json(self) -> dict[str, Any]:
        config, found = self.config, self.knee
        goals = config.goals
        return {
            "format": 1,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "url": config.url,
            "model": self.model,
            "input": str(config.input),
            "rows": self.rows,
            "seed": config.seed,
            "max_new_tokens": config.max_new_tokens,
            "goals_seconds": {
                "first_token": goals.first_token,
                "answer": goals.answer,
                "per_token": goals.per_token,
            },
            "knee_rate": found.to_json()["rate"] if found else None,
            "trials": [trial.to_json() for trial in self.trials],
            "machine_of_the_sender": machine(),
        }


def load_test(config: LoadTestConfig, report: Report = lambda text: None) -> LoadTest:
    """Run the trials in turn; `report` gets one line per trial. Failed requests are counted.

    Raises:
        ConfigError: an option is out of range.
        InputError: the rows cannot be read, or the server does not answer.
    """
    if config.requests < 1 or not config.rates or any(rate <= 0 for rate in config.rates):
        raise ConfigError(
            "rates and requests must be above 0", "for example --rate 2 --requests 50"
        )
    rows = [row for row in read_rows(config.input, config.reading) if isinstance(row, Request)]
    if not rows:
        raise InputError(f"{config.input} has no row that can be sent", "see packhorse run")
    return asyncio.run(_run(config, rows, report))


async def _run(config: LoadTestConfig, rows: list[Request], report: Report) -> LoadTest:
    async with client_for(config.url, config.api_key, config.timeout_seconds) as client:
        model = await served_model(client)
        is_any_plain = any(isinstance(row.content, str) and not row.bare for row in rows)
        has_chats = not is_any_plain or await has_chat_template(client, model)
        system = config.reading.system
        bodies = [
            request_body(
                row, model, config.max_new_tokens, system=system, has_chat_template=has_chats
            )
            for row in rows
        ]
        trials = []
        for rate in config.rates:
            report(f"{config.requests} requests at {rate:g}/s")
            due = poisson_arrivals(rate, config.requests, config.seed)
            trials.append(summarize(rate, await send_all(client, bodies, due), config.goals))
    return LoadTest(config, model, min(len(rows), config.requests), tuple(trials))
