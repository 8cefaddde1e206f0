"""Queue of rows for the engine: admission, when a batch closes, and which batch goes next.

Pure: the time is an argument. A batch closes when the queued rows fill one, or when the oldest has
waited `max_delay_seconds`. The batching policy chooses which rows share a batch, as in
`packhorse run`. Of the batches it would make, the one with the highest response ratio goes next,

    (time its oldest row has waited + its expected time) / its expected time

(highest response ratio next, Brinch Hansen 1971): short batches pass long ones, and the
ratio of a batch grows while it waits. A row that has waited `max_wait_seconds` goes before all
younger rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from packhorse.batching.expected import sizes_of
from packhorse.batching.planner import plan_batches
from packhorse.batching.sizes import Limits, batch_tokens
from packhorse.data import Batch, Prompt
from packhorse.engine_protocol import EngineCapabilities
from packhorse.serve.config import QueueConfig

PLANNED_ROWS = 256
"""A batch is chosen among this many of the oldest rows."""
ASSUMED_SECONDS_PER_TOKEN = 0.001
"""Used if the engine's costs were not measured."""
JOINING_ROWS = 16
"""Rows sent at once to an engine with continuous batching."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How batches are made for one loaded engine; see `packhorse.inference.model.Model`."""

    capabilities: EngineCapabilities
    policy: str
    limits: Limits
    share_prefixes: bool = False

    @property
    def is_continuous(self) -> bool:
        return self.capabilities.max_num_seqs > 0


@dataclass(slots=True)
class RequestQueue:
    """Queued rows in order of arrival.

    Attributes:
        batching: of the loaded engine; None while there is none, and then no batch is due.
        tokens: prompt and new tokens of all queued rows.
    """

    config: QueueConfig
    batching: Batching | None = None
    tokens: int = 0
    _rows: dict[int, tuple[Prompt, float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, prompts: Sequence[Prompt], now: float) -> bool:
        """Queue all of `prompts`, or none and return False if the queue is full. now: seconds."""
        tokens = sum(map(tokens_of, prompts))
        if len(self) + len(prompts) > self.config.max_rows:
            return False
        is_alone = not self._rows and len(prompts) == 1
        if not is_alone and self.tokens + tokens > self.config.max_tokens:
            return False
        for prompt in prompts:
            self._rows[prompt.index] = (prompt, now)
        self.tokens += tokens
        return True

    def can_hold(self, rows: int, tokens: int) -> bool:
        """Return whether an empty queue has space for this many rows and tokens."""
        return rows <= self.config.max_rows and (rows == 1 or tokens <= self.config.max_tokens)

    def remove(self, index: int) -> bool:
        """Remove a row; return False if it is not queued."""
        found = self._rows.pop(index, None)
        if found is not None:
            self.tokens -= tokens_of(found[0])
        return found is not None

    def oldest(self) -> float | None:
        """Return when the oldest queued row arrived."""
        return next((arrived for _, arrived in self._rows.values()), None)

    def next_batch_at(self) -> float | None:
        """Return when the next batch closes if no row arrives; None if nothing is queued."""
        arrived = self.oldest()
        if arrived is None or self.batching is None:
            return None
        if self.batching.is_continuous or self._fills_a_batch(self.batching):
            return arrived
        return arrived + self.config.max_delay_seconds

    def next_batch(self, now: float) -> Batch | None:
        """Remove and return the batch to send to the engine now; None if none is due."""
        due = self.next_batch_at()
        if self.batching is None or due is None or due > now:
            return None
        batch = self._choose_batch(self.batching, now)
        for prompt in batch.prompts:
            self.remove(prompt.index)
        return batch

    def _choose_batch(self, batching: Batching, now: float) -> Batch:
        if batching.is_continuous:
            return Batch(tuple(self._oldest_first(JOINING_ROWS)))
        batches = plan_batches(
            list(self._oldest_first(PLANNED_ROWS)),
            batching.policy,
            batching.limits,
            mixed_decoding=batching.capabilities.mixed_decoding,
            share_prefixes=batching.share_prefixes and batching.capabilities.shares_prefixes,
            length_group=batching.capabilities.length_group,
        )
        arrived = self.oldest()
        assert arrived is not None
        if now - arrived >= self.config.max_wait_seconds:
            return min(batches, key=self._arrival)
        return max(batches, key=lambda batch: self._response_ratio(batch, batching.limits, now))

    def _oldest_first(self, rows: int) -> Iterable[Prompt]:
        return (prompt for prompt, _ in islice(self._rows.values(), rows))

    def _arrival(self, batch: Batch) -> float:
        return min(self._rows[prompt.index][1] for prompt in batch.prompts)

    def _response_ratio(self, batch: Batch, limits: Limits, now: float) -> float:
        seconds = expected_batch_seconds(batch, limits)
        return (now - self._arrival(batch) + seconds) / seconds

    def _fills_a_batch(self, batching: Batching) -> bool:
        """Return whether the queued rows fill a batch."""
        limits = batching.limits
        rows = {"single": 1, "fixed": limits.batch_size, "sorted": limits.batch_size}
        most = rows.get(batching.policy)
        return self.tokens >= limits.max_batch_tokens or (most is not None and len(self) >= most)


def tokens_of(prompt: Prompt) -> int:
    """Return the most tokens a row can take: its prompt and its new tokens."""
    return len(prompt.token_ids) + prompt.decoding.max_new_tokens


def expected_batch_seconds(batch: Batch, limits: Limits) -> float:
    """Return the expected seconds of a batch, by the engine's measured costs if there are any."""
    sizes = sizes_of(batch)
    if limits.costs is not None:
        return max(limits.costs.batch_seconds(sizes), 1e-6)
    return batch_tokens(sizes) * ASSUMED_SECONDS_PER_TOKEN
