"""Metrics of the server in Prometheus' naming and base units, for /metrics and the status page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from packhorse.batching.expected import sizes_of
from packhorse.data import Batch, Prompt

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 64, 256, 1024, 4096, 16384, 65536)


@dataclass(slots=True)
class RecentActivity:
    """What happened last, for the page (seconds, rows); generated_tokens: since the start."""

    generated_tokens: int = 0
    batch_rows: deque[int] = field(default_factory=lambda: deque(maxlen=60))
    first_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=500))
    row_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=500))


class ServerMetrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.recent = RecentActivity()
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"packhorse_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"packhorse_{name}", text, buckets=buckets, registry=registry)

        self.responses = counter("http_responses", "Responses", ("path", "status"))
        self.rows_ended = counter("rows_ended", "Rows by how they ended", ("outcome",))
        self.rows_abandoned = counter("rows_abandoned", "Rows whose client disconnected")
        self.rows_refused = counter("rows_refused", "Rows refused because the queue was full")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of rows that ended")
        self.generated_tokens = counter("generated_tokens", "Tokens generated")
        self.embedded_texts = counter("embedded_texts", "Texts embedded")
        self.embedded_tokens = counter("embedded_tokens", "Tokens of texts embedded")
        self.batch_interruptions = counter(
            "batch_interruptions", "Times a batch was interrupted by a disk error"
        )
        self.engine_stalls = counter("engine_stalls", "Times the engine made no progress")
        self.engine_restarts = counter(
            "engine_restarts", "Times the engine process ended unexpectedly"
        )
        self.first_token_seconds = histogram(
            "time_to_first_token_seconds", "From a row's admission to its first token", _SECONDS
        )
        self.row_seconds = histogram(
            "row_seconds", "From a row's admission to its last token", _SECONDS
        )
        self.queue_seconds = histogram(
            "queue_seconds", "From a row's admission to its batch's start", _SECONDS
        )
        self.batch_rows = histogram("batch_rows", "Rows per batch", _ROWS)
        self.batch_tokens = histogram(
            "batch_tokens", "Prompt and new tokens of a batch, without padding", _TOKENS
        )

    def add_gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge whose value is asked for when it is read."""
        Gauge(f"packhorse_{name}", text, registry=self.registry).set_function(value)

    def count_batch(self, batch: Batch) -> None:
        sizes = sizes_of(batch)
        self.recent.batch_rows.append(len(sizes))
        self.batch_rows.observe(len(sizes))
        self.batch_tokens.observe(sum(row.shared + row.prompt + row.new for row in sizes))

    def count_token(self, first_seconds: float | None) -> None:
        """first_seconds: since the row was admitted, for its first token."""
        self.recent.generated_tokens += 1
        self.generated_tokens.inc()
        if first_seconds is not None:
            self.recent.first_seconds.append(first_seconds)
            self.first_token_seconds.observe(first_seconds)

    def count_failed(self, code: str) -> None:
        self.rows_ended.labels(code).inc()

    def count_completed(self, prompt: Prompt, arrived: float, submitted: float) -> None:
        """arrived: when the row was admitted; submitted: when the engine took its batch."""
        seconds = time.monotonic() - arrived
        self.rows_ended.labels("completed").inc()
        self.prompt_tokens.inc(len(prompt.token_ids))
        self.queue_seconds.observe(max(0.0, submitted - arrived))
        self.row_seconds.observe(seconds)
        self.recent.row_seconds.append(seconds)
