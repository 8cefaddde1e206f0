"""Rows that wait for the engine: who gets in, when a batch closes, and which goes next. Pure: time
comes in as an argument.

A batch closes when the rows that wait fill one, or when the oldest has waited `max_delay_seconds`.
Which rows share it is the batching policy's choice, as in `packhorse run`. Of the batches it would
make, the one with the highest response ratio goes,

    (time its oldest row has waited + its expected time) / its expected time

(highest response ratio next, Brinch Hansen 1971): short ones pass long ones, and whoever waits
gains on all that come later. A row that has waited `max_wait_seconds` goes before all younger ones.
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
"""Rows, the oldest, among which a batch is chosen."""
ASSUMED_SECONDS_PER_TOKEN = 0.001
"""Of a batch, where the engine's costs were not measured."""
JOINING_ROWS = 16
"""Rows handed at once to an engine that rows join at every step."""


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
    """The rows that wait, in order of arrival.

    batching: of the engine that will run them; None until it is loaded, then `take` gives nothing.
    """

    waits: QueueConfig
    batching: Batching | None = None
    tokens: int = 0
    _rows: dict[int, tuple[Prompt, float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, prompts: Sequence[Prompt], now: float) -> bool:
        """Lets all of `prompts` wait, or none where they are too many. now: seconds."""
        tokens = sum(map(tokens_of, prompts))
        if len(self) + len(prompts) > self.waits.max_rows:
            return False
        is_alone = not self._rows and len(prompts) == 1
        if not is_alone and self.tokens + tokens > self.waits.max_tokens:
            return False
        for prompt in prompts:
            self._rows[prompt.index] = (prompt, now)
        self.tokens += tokens
        return True

    def could_hold(self, rows: int, tokens: int) -> bool:
        """Whether so many rows, and tokens in them, could wait if nobody else did."""
        return rows <= self.waits.max_rows and (rows == 1 or tokens <= self.waits.max_tokens)

    def remove(self, index: int) -> bool:
        """Lets a row leave; False where it does not wait."""
        found = self._rows.pop(index, None)
        if found is not None:
            self.tokens -= tokens_of(found[0])
        return found is not None

    def oldest(self) -> float | None:
        """When the row that has waited longest arrived."""
        return next((arrived for _, arrived in self._rows.values()), None)

    def due_at(self) -> float | None:
        """When the next batch closes, where no further row comes; None where nothing waits."""
        arrived = self.oldest()
        if arrived is None or self.batching is None:
            return None
        if self.batching.is_continuous or self._fills_a_batch(self.batching):
            return arrived
        return arrived + self.waits.max_delay_seconds

    def take(self, now: float) -> Batch | None:
        """The rows that go to the engine now, which no longer wait; None where none are due."""
        due = self.due_at()
        if self.batching is None or due is None or due > now:
            return None
        batch = self._next(self.batching, now)
        for prompt in batch.prompts:
            self.remove(prompt.index)
        return batch

    def _next(self, batching: Batching, now: float) -> Batch:
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
        if now - arrived >= self.waits.max_wait_seconds:
            return min(batches, key=self._arrival)
        return max(batches, key=lambda batch: self._response_ratio(batch, batching.limits, now))

    def _oldest_first(self, rows: int) -> Iterable[Prompt]:
        return (prompt for prompt, _ in islice(self._rows.values(), rows))

    def _arrival(self, batch: Batch) -> float:
        return min(self._rows[prompt.index][1] for prompt in batch.prompts)

    def _response_ratio(self, batch: Batch, limits: Limits, now: float) -> float:
        seconds = expected_seconds(batch, limits)
        return (now - self._arrival(batch) + seconds) / seconds

    def _fills_a_batch(self, batching: Batching) -> bool:
        """Whether the rows that wait are as many as a batch may hold, whoever comes yet."""
        limits = batching.limits
        rows = {"single": 1, "fixed": limits.batch_size, "sorted": limits.batch_size}
        most = rows.get(batching.policy)
        return self.tokens >= limits.max_batch_tokens or (most is not None and len(self) >= most)


def tokens_of(prompt: Prompt) -> int:
    """Tokens a row takes at most: its prompt and what it may generate."""
    return len(prompt.token_ids) + prompt.decoding.max_new_tokens


def expected_seconds(batch: Batch, limits: Limits) -> float:
    """Seconds the engine will take for a batch, by its measured costs where there are some."""
    sizes = sizes_of(batch)
    if limits.costs is not None:
        return max(limits.costs.batch_seconds(sizes), 1e-6)
    return batch_tokens(sizes) * ASSUMED_SECONDS_PER_TOKEN
