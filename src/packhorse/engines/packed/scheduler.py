"""Choice of the tokens that the next step computes: continuous batching with chunked prefill.

Rows that decode come first, then running prompts, as many of their tokens as fit into the step
(chunked prefill, Agrawal et al. 2023, arXiv 2308.16369), then waiting rows in arrival order. A row
that is done leaves at once.

If blocks run out, the most recently admitted row is preempted: it waits at the front of the queue
and later continues after its last token, with its keys and values recomputed.

Rows of a failed step are computed in steps of their own until each has advanced by one token, and
twice as many after each further failure. Steps of single rows alternate with shared steps.

A row that is scored computes the continuations of its prompt one path after the other; each path
replaces the previous one in the cache. If there is room, paths are given to forks of the row, which
share its blocks.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from packhorse.batching.prefixes import common_length
from packhorse.engines.common.rows import Row
from packhorse.engines.common.sampling import wants_all_logits
from packhorse.engines.packed.blocks import BlockPool
from packhorse.engines.packed.cache import KeyValueCache
from packhorse.engines.packed.scratch import SPAN_TOKENS, Step
from packhorse.engines.packed.tiles import BLOCK

ADMISSION_WINDOW = 64
"""Number of waiting rows that are searched for one that can be admitted."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Scheduling state of a row.

    Attributes:
        row: The row.
        prefix: Leading tokens that it shares with other rows, as `cache_key` gives them.
        rng: Its random number generator.
        token_ids: Prompt and generated tokens at its last admission.
        num_computed_tokens: Tokens whose keys and values are in the cache.
        table_row: Its row of `Scheduler.block_tables`; -1 while it waits.
        block_table: Its cache blocks in order.
        is_busy: Whether a step that contains it is being computed.
        failed_steps: Number of failed steps that it shared with others.
        steps_alone: Tokens or paths to compute before it shares a step again.
        publishes_prefix: Whether to add its prefix to the prefix cache once computed.
        path: Continuation tokens being scored.
        pending_paths: Paths to score after `path`, in order.
        rotation_offset: What is added to its positions in `Step.rotation_rows`; not 0 if it is
            longer than the trained length.
        caller: The `packhorse.engines.packed.caller.Caller` that brought the row.
    """

    row: Row
    prefix: tuple[int, ...]
    rng: random.Random
    token_ids: tuple[int, ...] = ()
    num_computed_tokens: int = 0
    table_row: int = -1
    block_table: list[int] = field(default_factory=list)
    is_busy: bool = False
    failed_steps: int = 0
    steps_alone: int = 0
    publishes_prefix: bool = False
    path: tuple[int, ...] = ()
    pending_paths: list[tuple[int, ...]] = field(default_factory=list)
    rotation_offset: int = 0
    caller: Any = None

    def cache_key(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Return the key of tokens in the prefix cache.

        Keys of rows beyond the trained length are rotated otherwise, so these share blocks with
        each other only: their tokens are negative there.
        """
        return tuple(~token for token in tokens) if self.rotation_offset else tokens

    @property
    def num_remaining_tokens(self) -> int:
        """Number of tokens to compute before the next one is known."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def logits_start(self) -> int:
        """First token whose logits are needed; those of all later tokens are needed too."""
        if self.row.needs_prompt_log_probs:
            return len(self.row.prompt_log_probs)
        return self.num_tokens - max(1, len(self.path))

    @property
    def num_tokens(self) -> int:
        """Number of tokens of prompt, answer and path."""
        return len(self.row.prompt.token_ids) + len(self.row.token_ids) + len(self.path)

    def next_tokens(self, count: int) -> tuple[int, ...]:
        """Return the next `count` tokens to compute."""
        if self.path:
            return (*self.token_ids, *self.path)[
                self.num_computed_tokens : self.num_computed_tokens + count
            ]
        if self.num_computed_tokens < len(self.token_ids):
            return self.token_ids[self.num_computed_tokens : self.num_computed_tokens + count]
        return (self.row.token_ids[-1],)

    def start_next_path(self) -> None:
        """Switch to the next path, keeping what it shares with the previous one."""
        before, self.path = self.path, self.pending_paths.pop(0)
        self.num_computed_tokens = len(self.token_ids) + common_length(before, self.path)


class Scheduler:
    """Continuous-batching scheduler. It is not thread-safe: callers hold a lock.

    Args:
        cache: Key/value cache; it must hold at least `context` tokens.
        max_num_seqs: Maximum number of running rows.
        max_num_batched_tokens: Maximum number of tokens per step; more than `max_num_seqs`.
        workers: Number of steps computed at the same time.
        shared_rows: Up to this number of running rows, all threads compute one step together.
        context: Maximum number of tokens per row.
    """

    def __init__(
        self,
        cache: KeyValueCache,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        workers: int,
        context: int,
        shared_rows: int = 0,
    ) -> None:
        self.block_tables = np.zeros((max_num_seqs, -(-context // BLOCK)), np.int32)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._cache, self._pool = cache, BlockPool(cache.blocks)
        self._max_num_batched_tokens, self._workers = max_num_batched_tokens, workers
        self._free_table_rows = list(range(max_num_seqs - 1, -1, -1))
        self._prefix_publishers: dict[tuple[int, ...], Sequence] = {}
        self._alone_first = True
        self._shared_rows, self.shares_step = shared_rows, False

    @property
    def num_free_blocks(self) -> int:
        """Number of blocks that no row holds."""
        return self._pool.num_free_blocks

    def add(self, sequences: Iterable[Sequence]) -> None:
        self.waiting.extend(sequences)

    def discard(self, caller: object) -> bool:
        """Remove the rows of a caller; return whether steps with some of them are running."""
        self.waiting = deque(each for each in self.waiting if each.caller is not caller)
        own = [each for each in self.running if each.caller is caller]
        for sequence in own:
            if not sequence.is_busy:
                self.remove(sequence)
        return any(sequence.is_busy for sequence in own)

    def schedule(self) -> list[tuple[Sequence, int]]:
        """Return the rows of the next step and the number of tokens of each; they become busy.

        Empty if nothing can be computed before a running step ends or rows are added.
        """
        self.shares_step = self._shared_rows > 0 and len(self.running) <= self._shared_rows
        if self.shares_step and any(sequence.is_busy for sequence in self.running):
            return []
        chosen = self._schedule_alone() if self._alone_first else []
        chosen = chosen or self._schedule_together() or self._schedule_alone()
        self._alone_first = not (chosen and chosen[0][0].steps_alone)
        return chosen

    def advance(self, sequence: Sequence, count: int) -> None:
        """Record that `count` more tokens of a row are in the cache."""
        sequence.num_computed_tokens += count
        sequence.is_busy = False
        if sequence.steps_alone and sequence.num_computed_tokens >= len(sequence.token_ids) + len(
            sequence.path
        ):
            sequence.steps_alone -= 1
        blocks = min(-(-len(sequence.prefix) // BLOCK), len(sequence.token_ids) // BLOCK)
        if sequence.publishes_prefix and sequence.num_computed_tokens >= blocks * BLOCK:
            key = sequence.cache_key(sequence.token_ids)
            self._pool.cache_prefix(key, sequence.block_table[:blocks])
            self._stop_publishing(sequence)
        if sequence.pending_paths and sequence.num_remaining_tokens == 0:
            sequence.start_next_path()

    def fork(self, sequence: Sequence) -> None:
        """Give pending paths of a computed prompt to forks that run at the same time.

        Forks are created only while no row waits and blocks are left.
        """
        if sequence.num_computed_tokens < len(sequence.token_ids):
            return
        whole, rest = divmod(len(sequence.token_ids), BLOCK)
        while sequence.pending_paths and self._free_table_rows and not self.waiting:
            if self._pool.num_free_blocks <= len(self.running) + 1:
                return
            fork = replace(
                sequence,
                block_table=[],
                publishes_prefix=False,
                pending_paths=[],
                path=sequence.pending_paths.pop(),
            )
            fork.table_row, fork.num_computed_tokens = (
                self._free_table_rows.pop(),
                len(sequence.token_ids),
            )
            self.running.append(fork)
            self._pool.share(sequence.block_table[:whole])
            self._append_blocks(fork, sequence.block_table[:whole])
            if rest:
                self._append_blocks(fork, [self._pool.allocate()])
                self._cache.copy(sequence.block_table[whole], fork.block_table[whole])

    def remove(self, sequence: Sequence, *, is_damaged: bool = False) -> None:
        """Remove a finished row.

        Args:
            sequence: The row.
            is_damaged: Whether its keys and values are not finite; they are then cleared.
        """
        if is_damaged:
            self._pool.evict(sequence.block_table)
            self._cache.clear(self._pool.unshared(sequence.block_table))
        self._release(sequence)

    def restart_if_longer(self, sequence: Sequence, length: int, rotation_offset: int) -> None:
        """Compute a row anew with long rotations if it has grown beyond the trained length.

        Args:
            sequence: The row.
            length: The trained length (tokens); 0 for none.
            rotation_offset: Its `rotation_offset` from then on.
        """
        if length and not sequence.rotation_offset and sequence.num_tokens > length:
            self.preempt(sequence)
            sequence.rotation_offset, sequence.prefix = rotation_offset, ()

    def preempt(self, sequence: Sequence, *, has_failed: bool = False) -> None:
        """Move a running row to the front of the queue.

        Args:
            sequence: The row.
            has_failed: Whether it was part of a shared step that failed.
        """
        self.num_preemptions += 1
        if has_failed:
            sequence.steps_alone = 1 << sequence.failed_steps
            sequence.failed_steps += 1
        self._release(sequence)
        self.waiting.appendleft(sequence)

    def _schedule_together(self) -> list[tuple[Sequence, int]]:
        """Return the next step of rows that share one."""
        chosen: list[tuple[Sequence, int]] = []
        room, logits = self._max_num_batched_tokens, len(self.block_tables)
        for sequence, tokens in self._candidates():
            if sequence.steps_alone:
                continue
            count = self._reserve_step(sequence, min(tokens, room), logits)
            if count == 0:
                continue
            chosen.append((sequence, count))
            wanted = (
                sequence.num_computed_tokens
                + count
                - max(sequence.logits_start, sequence.num_computed_tokens)
            )
            room, logits = room - count, logits - max(0, wanted)
            if room == 0 or logits == 0:
                break
        return chosen

    def _schedule_alone(self) -> list[tuple[Sequence, int]]:
        """Return the next step of a single row: the earliest admitted of those that run alone."""
        for sequence in list(self.running):
            if sequence.steps_alone and not sequence.is_busy and sequence.table_row >= 0:
                tokens = min(sequence.num_remaining_tokens, self._max_num_batched_tokens)
                if count := self._reserve_step(sequence, tokens, len(self.block_tables)):
                    return [(sequence, count)]
        return []

    def _reserve_step(self, sequence: Sequence, tokens: int, logits: int) -> int:
        """Mark a row busy and return how many tokens to compute; 0 if blocks run out.

        Args:
            sequence: The row.
            tokens: Maximum number of tokens.
            logits: Number of logit rows left in the step.
        """
        before = max(0, sequence.logits_start - sequence.num_computed_tokens)
        count = min(tokens, before + logits)
        if not self._allocate_blocks(sequence, sequence.num_computed_tokens + count):
            return 0
        sequence.is_busy = True
        return count

    def _candidates(self) -> Iterator[tuple[Sequence, int]]:
        """Yield the rows that could be computed now in order of preference, and their tokens.

        Of rows that run alone, only newly admitted ones are yielded. Decoding rows are divided
        evenly among the workers, so that none is idle.
        """
        decoding = [
            each for each in self.running if each.num_remaining_tokens == 1 and not each.steps_alone
        ]
        share = len(decoding) if self.shares_step else -(-len(decoding) // self._workers)
        ready = [each for each in decoding if not each.is_busy]
        yield from ((each, 1) for each in ready[:share] if each.table_row >= 0)
        for sequence in list(self.running):
            is_ready = not (sequence.is_busy or sequence.steps_alone) and sequence.table_row >= 0
            if is_ready and sequence.num_remaining_tokens > 1:
                yield sequence, sequence.num_remaining_tokens
        while (admitted := self._admit()) is not None:
            yield admitted, admitted.num_remaining_tokens

    def _admit(self) -> Sequence | None:
        """Admit the first waiting row that can run now, if any.

        Rows wait for a running row that computes their prefix.
        """
        if not self._free_table_rows:
            return None
        for place in range(min(ADMISSION_WINDOW, len(self.waiting))):
            sequence = self.waiting[place]
            if sequence.prefix and sequence.prefix in self._prefix_publishers:
                continue
            if not self._can_admit(sequence):
                return None
            del self.waiting[place]
            self._start(sequence)
            return sequence
        return None

    def _can_admit(self, sequence: Sequence) -> bool:
        """Return whether there are blocks for the row and one more for each running row."""
        needed = -(-sequence.num_remaining_tokens // BLOCK) + len(self.running) + 1
        return needed <= self._pool.num_free_blocks or not self.running

    def _start(self, sequence: Sequence) -> None:
        sequence.token_ids = sequence.row.sequence
        sequence.table_row = self._free_table_rows.pop()
        self.running.append(sequence)
        if sequence.prefix:
            self._reuse_prefix(sequence)
        self._allocate_blocks(sequence, len(sequence.token_ids))

    def _reuse_prefix(self, sequence: Sequence) -> None:
        """Share the cached part of the row's prefix; the row publishes the rest."""
        wanted = sequence.prefix[: len(sequence.token_ids) - 1]
        match, pool = self._pool.match_prefix(wanted), self._pool
        pool.share(match.blocks)
        self._append_blocks(sequence, match.blocks)
        sequence.num_computed_tokens = len(match.blocks) * BLOCK
        if match.copied:
            pool.share([match.source])
            if pool.num_free_blocks:
                self._append_blocks(sequence, [pool.allocate()])
                self._cache.copy(match.source, sequence.block_table[-1])
                sequence.num_computed_tokens += match.copied
            pool.free([match.source])
        if sequence.num_computed_tokens < len(wanted):
            sequence.publishes_prefix = True
            self._prefix_publishers[sequence.prefix] = sequence

    def _allocate_blocks(self, sequence: Sequence, tokens: int) -> bool:
        """Allocate blocks for `tokens` tokens of a row, preempting later rows if necessary.

        Returns:
            Whether the row has enough blocks.
        """
        needed = -(-tokens // BLOCK) - len(sequence.block_table)
        while needed > self._pool.num_free_blocks:
            later = self.running[self.running.index(sequence) + 1 :]
            victim = next((each for each in reversed(later) if not each.is_busy), None)
            if victim is None:
                return False
            self.preempt(victim)
        if needed > 0:
            self._append_blocks(sequence, [self._pool.allocate() for _ in range(needed)])
        return True

    def _append_blocks(self, sequence: Sequence, blocks: list[int] | tuple[int, ...]) -> None:
        start = len(sequence.block_table)
        sequence.block_table += blocks
        self.block_tables[sequence.table_row, start : start + len(blocks)] = blocks

    def _release(self, sequence: Sequence) -> None:
        self._pool.free(sequence.block_table)
        self._free_table_rows.append(sequence.table_row)
        self.running.remove(sequence)
        sequence.block_table, sequence.table_row, sequence.num_computed_tokens = [], -1, 0
        sequence.is_busy = False
        self._stop_publishing(sequence)

    def _stop_publishing(self, sequence: Sequence) -> None:
        if sequence.publishes_prefix:
            sequence.publishes_prefix = False
            del self._prefix_publishers[sequence.prefix]


def pack(chosen: list[tuple[Sequence, int]], step: Step) -> list[Sequence]:
    """Write the chosen rows into `step`.

    Returns:
        The row of each of the step's `logit_tokens`; rows that need only the most probable token
            first.
    """
    step.num_tokens = step.num_spans = 0
    ends: tuple[list[tuple[Sequence, int]], ...] = ([], [])
    for sequence, count in chosen:
        first, position = step.num_tokens, sequence.num_computed_tokens
        packed = slice(first, first + count)
        step.tokens[packed] = sequence.next_tokens(count)
        step.positions[packed] = np.arange(position, position + count)
        step.rotation_rows[packed] = step.positions[packed] + sequence.rotation_offset
        step.table_rows[packed] = sequence.table_row
        for begin in range(0, count, SPAN_TOKENS):
            size = min(SPAN_TOKENS, count - begin)
            start = first + begin
            step.spans[step.num_spans] = (
                start, size, position + begin, sequence.table_row, start,
            )  # fmt: skip
            step.num_spans += 1
        step.num_tokens = first + count
        wants_all = wants_all_logits(sequence.row.prompt.decoding)
        wanted = max(sequence.logits_start - position, 0)
        ends[wants_all].extend((sequence, first + place) for place in range(wanted, count))
    every = [*ends[False], *ends[True]]
    step.num_logits, step.num_best = len(every), len(ends[False])
    step.logit_tokens[: len(every)] = [token for _, token in every]
    return [sequence for sequence, _ in every]
