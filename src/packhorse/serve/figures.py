"""What the server counts, for /metrics and its page; Prometheus' names and base units."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from packhorse.batching.expected import sizes_of
from packhorse.data import Batch, Failure, Prompt

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 64, 256, 1024, 4096, 16384, 65536)


class Figures:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"packhorse_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"packhorse_{name}", text, buckets=buckets, registry=registry)

        self.responses = counter("http_responses", "Responses", ("path", "status"))
        self.rows_ended = counter("rows_ended", "Rows by how they ended", ("outcome",))
        self.rows_abandoned = counter("rows_abandoned", "Rows whose client left")
        self.rows_refused = counter("rows_refused", "Rows refused because too many waited")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of rows that ended")
        self.generated_tokens = counter("generated_tokens", "Tokens generated")
        self.engine_restarts = counter("engine_restarts", "Times the engine's process was lost")
        self.first_token_seconds = histogram(
            "time_to_first_token_seconds", "From a row's admission to its first token", _SECONDS
        )
        self.row_seconds = histogram(
            "row_seconds", "From a row's admission to its last token", _SECONDS
        )
        self.queue_seconds = histogram(
            "queue_seconds", "From a row's admission to its batch's start", _SECONDS
        )
        self.batch_rows = histogram("batch_rows", "Rows a batch", _ROWS)
        self.batch_tokens = histogram(
            "batch_tokens", "Prompt and new tokens of a batch, without padding", _TOKENS
        )

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge whose value is asked for when it is read."""
        Gauge(f"packhorse_{name}", text, registry=self.registry).set_function(value)

    def count_batch(self, batch: Batch) -> None:
        sizes = sizes_of(batch)
        self.batch_rows.observe(len(sizes))
        self.batch_tokens.observe(sum(row.shared + row.prompt + row.new for row in sizes))

    def count_outcome(self, prompt: Prompt, outcome: object, seconds: float) -> None:
        """seconds: since the row was admitted."""
        if isinstance(outcome, Failure):
            self.rows_ended.labels(outcome.code).inc()
            return
        self.rows_ended.labels("completed").inc()
        self.prompt_tokens.inc(len(prompt.token_ids))
        self.row_seconds.observe(seconds)
