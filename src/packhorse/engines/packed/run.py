"""One run of the packed engine: worker threads that compute steps, and the rows they share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import torch

from packhorse.data import Batch, Scores, TokenLogProbs
from packhorse.engine_protocol import TokenCallback
from packhorse.engines.common.log_probs import wanted_log_probs
from packhorse.engines.common.rows import (
    NOT_NUMBERS,
    CallbackError,
    Row,
    diagnose,
    force_tokens,
    refuse,
)
from packhorse.engines.common.rows import Result as Generated
from packhorse.engines.common.sampling import choose_tokens, row_generator, wants_all_logits
from packhorse.engines.packed.network import SAMPLED_AT_ONCE, Network, Scratch, Step, empty_step
from packhorse.engines.packed.scheduler import Scheduler, Sequence, pack
from packhorse.engines.packed.scoring import Scoring
from packhorse.errors import EngineError

Result = Generated | Scores
QUEUE_SHARE = 4
"""The queue holds up to 1 / QUEUE_SHARE as many rows as may run at once."""


@dataclass(frozen=True, slots=True)
class _WorkerExit:
    """A worker ended, by `error` or because no work was left."""

    error: BaseException | None


@dataclass(slots=True)
class _SharedStep:
    """A step that several threads compute together.

    Attributes:
        step: The step.
        scratch: Buffers of the thread that leads it.
        is_open: Whether other threads may join.
        num_helpers: Threads that joined and have not left.
        error: What a helper raised.
    """

    step: Step
    scratch: Scratch
    is_open: bool = False
    num_helpers: int = 0
    error: BaseException | None = None


NEEDS_INPUT = object()
"""Wakes the caller's thread because there is room for more rows."""


class Run:
    """One pass of rows from `batches` to results.

    Args:
        network: Model; used by this run alone while it lasts.
        scheduler: Scheduler; used by this run alone.
        scratches: Scratch buffers, one per thread.
        end_ids: Token ids that end a row.
        max_context: Maximum number of prompt and generated tokens per row.
        on_token: Called with each generated token.
        scoring: Continuations to score; None to generate.
    """

    def __init__(
        self,
        network: Network,
        scheduler: Scheduler,
        scratches: list[Scratch],
        end_ids: frozenset[int],
        max_context: int,
        on_token: TokenCallback | None = None,
        scoring: Scoring | None = None,
    ) -> None:
        self._network, self._scheduler, self._scratches = network, scheduler, scratches
        self._end_ids, self._max_context, self._on_token = end_ids, max_context, on_token
        self._scoring = scoring
        self._queue_rows = max(1, len(scheduler.block_tables) // QUEUE_SHARE)
        self._results: SimpleQueue[object] = SimpleQueue()
        self._changed = threading.Condition()
        self._has_input, self._is_cancelled = True, False
        self._input_requested = self._was_closed = False
        self._shared: _SharedStep | None = None
        self._threads = [
            threading.Thread(target=self._run_steps, args=(scratch,), name="packed", daemon=True)
            for scratch in scratches
        ]

    def results(self, batches: Iterator[Batch]) -> Iterator[Result]:
        """Yield results as rows finish.

        Rows are pulled when there is room; finished results are yielded first.
        """
        working = len(self._threads)
        for thread in self._threads:
            thread.start()
        try:
            while working:
                while self._needs_input() and self._results.empty():
                    batch = next(batches, None)
                    if batch is None:
                        self._end_input()
                    else:
                        yield from self._enqueue(batch)
                outcome = self._results.get()
                if isinstance(outcome, _WorkerExit):
                    working -= 1
                    if outcome.error is not None:
                        raise outcome.error
                elif outcome is not NEEDS_INPUT:
                    yield outcome  # type: ignore[misc]
        finally:
            self.cancel()
        if self._was_closed:
            raise EngineError("the engine was closed during a run", "load the model again")

    def cancel(self, *, closes: bool = False) -> None:
        """Stop the running steps and wait for the workers.

        Args:
            closes: Whether the engine is being closed.
        """
        with self._changed:
            self._is_cancelled = True
            self._was_closed |= closes and self._has_work()
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _enqueue(self, batch: Batch) -> Iterator[Result]:
        """Queue the rows of a batch; yield failures of rows that cannot run."""
        rows = [Row(prompt) for prompt in batch.prompts]
        vocabulary, positions = self._network.arch.vocabulary, self._network.arch.positions
        accepted = []
        for row in rows:
            prompt = row.prompt
            last = len(prompt.token_ids) + prompt.decoding.max_new_tokens
            if failure := refuse(row, self._max_context, vocabulary):
                yield failure
            elif positions and last > positions:
                yield row.fail(
                    "engine_error", f"{last} positions are needed, the model has {positions}"
                )
            else:
                prefix = prompt.token_ids[: batch.shared_prefix]
                paths = [] if self._scoring is None else list(self._scoring.paths)
                rng = row_generator(prompt.decoding)
                accepted.append(Sequence(row, prefix, rng, pending_paths=paths))
        with self._changed:
            self._scheduler.add(accepted)
            self._changed.notify_all()

    def _needs_input(self) -> bool:
        with self._changed:
            self._input_requested = False
            return self._has_input and len(self._scheduler.waiting) < self._queue_rows

    def _end_input(self) -> None:
        with self._changed:
            self._has_input = False
            self._changed.notify_all()

    def _has_work(self) -> bool:
        return self._has_input or bool(self._scheduler.waiting or self._scheduler.running)

    def _run_steps(self, scratch: Scratch) -> None:
        """Compute steps in a worker thread until no work is left."""
        usual, error = torch.get_num_threads(), None
        torch.set_num_threads(1)
        try:
            step = empty_step(len(scratch.residual), len(self._scheduler.block_tables))
            while work := self._next_work(step, scratch):
                if isinstance(work, _SharedStep):
                    self._help(work, scratch)
                else:
                    self._compute(work, step, scratch)
        except CallbackError as raised:
            error = raised.error
        except BaseException as raised:  # noqa: BLE001 - `results` raises it in the caller's thread
            error = raised
        finally:
            torch.set_num_threads(usual)
            self._results.put(_WorkerExit(error))

    def _next_work(self, step: Step, scratch: Scratch) -> list[tuple[Sequence, int]] | _SharedStep:
        """Wait for work: the rows of the next step, or a step to help with; nothing at the end."""
        with self._changed:
            while not self._is_cancelled and self._has_work():
                if self._shared is None:
                    chosen = self._scheduler.schedule()
                    if self._has_input and len(self._scheduler.waiting) < self._queue_rows:
                        if not self._input_requested:
                            self._results.put(NEEDS_INPUT)
                        self._input_requested = True
                    if chosen and self._scheduler.shares_step:
                        self._shared = _SharedStep(step, scratch)
                    if chosen:
                        return chosen
                elif self._shared.is_open and scratch not in self._shared.scratch.helpers:
                    self._shared.num_helpers += 1
                    self._shared.scratch.helpers.append(scratch)
                    return self._shared
                self._changed.wait()
            self._changed.notify_all()
            return []

    def _help(self, shared: _SharedStep, scratch: Scratch) -> None:
        """Help another thread to compute its step."""
        block_tables = self._scheduler.block_tables
        try:
            self._network.join(shared.step, block_tables, shared.scratch, scratch)
        except Exception as error:  # noqa: BLE001 - the leading thread handles it
            shared.error = error
        with self._changed:
            shared.num_helpers -= 1
            self._changed.notify_all()

    def _run_network(self, step: Step, scratch: Scratch) -> None:
        """Compute a step, together with other threads if it is shared."""
        block_tables, shared = self._scheduler.block_tables, self._shared
        if shared is None or shared.step is not step:
            self._network.run(step, block_tables, scratch)
            return
        scratch.start(step)
        self._network.open(step, scratch)
        with self._changed:
            shared.is_open = True
            self._changed.notify_all()
        try:
            self._network.join(step, block_tables, scratch, scratch)
        finally:
            with self._changed:
                shared.is_open = False
                while shared.num_helpers:
                    self._changed.wait()
        if shared.error is not None:
            raise shared.error

    def _compute(self, chosen: list[tuple[Sequence, int]], step: Step, scratch: Scratch) -> None:
        try:
            ending = pack(chosen, step)
            if self._scoring is not None:
                step.num_best = 0
            self._run_network(step, scratch)
            results = self._collect_results(ending, step, scratch)
        except Exception as error:  # noqa: BLE001 - libraries may raise anything
            self._retry_separately(chosen, step, error)
            return
        with self._changed:
            for sequence, count in chosen:
                self._scheduler.advance(sequence, count)
                if sequence.row.answered or sequence.num_remaining_tokens == 0:
                    self._scheduler.remove(sequence, is_damaged=sequence.row.failed)
                elif sequence.pending_paths:
                    self._scheduler.fork(sequence)
            self._end_step(step)
        for outcome in results:
            self._results.put(outcome)

    def _end_step(self, step: Step) -> None:
        """Let the next step begin; called with the lock."""
        if self._shared is not None and self._shared.step is step:
            self._shared = None
        self._changed.notify_all()

    def _collect_results(
        self, ending: list[Sequence], step: Step, scratch: Scratch
    ) -> list[Result]:
        """Return the results of rows that finish with this step."""
        if self._scoring is not None:
            found = self._scoring.log_probs(ending, step, self._network, scratch)
            with self._changed:
                return [*self._scoring.results(found)]
        results: list[Result] = []
        tokens, log_probs = self._choose_tokens(ending, scratch)
        for place, (sequence, token) in enumerate(zip(ending, tokens, strict=True)):
            row = sequence.row
            if token is None:
                results.append(row.fail("engine_error", NOT_NUMBERS))
            elif result := row.take(token, self._end_ids, self._on_token, log_probs.get(place)):
                results.append(result)
        return results

    def _choose_tokens(
        self, ending: list[Sequence], scratch: Scratch
    ) -> tuple[list[int | None], dict[int, TokenLogProbs]]:
        """Return the next token of each row and the log-probabilities that were requested.

        Returns:
            Tokens, None for rows whose logits are not finite, and log-probabilities by place in
                `ending`.
        """
        decodings = [sequence.row.prompt.decoding for sequence in ending]
        simple = len(ending) - sum(map(wants_all_logits, decodings))
        best, best_at = self._network.choose(simple, scratch)
        tokens: list[int | None] = [
            token if number else None
            for token, number in zip(best_at.tolist(), np.isfinite(best).tolist(), strict=True)
        ]
        force_tokens(tokens, [sequence.row for sequence in ending[:simple]])
        log_probs: dict[int, TokenLogProbs] = {}
        for first in range(simple, len(ending), SAMPLED_AT_ONCE):
            rows = slice(first, min(len(ending), first + SAMPLED_AT_ONCE))
            logits = self._network.logits(rows, scratch)
            rngs = [sequence.rng for sequence in ending[rows]]
            chosen = choose_tokens(torch.from_numpy(logits), decodings[rows], rngs)
            force_tokens(chosen, [sequence.row for sequence in ending[rows]])
            found = wanted_log_probs(chosen, decodings[rows], logits.__getitem__)
            log_probs |= {first + place: each for place, each in found.items()}
            tokens += chosen
        return tokens, log_probs

    def _retry_separately(
        self, chosen: list[tuple[Sequence, int]], step: Step, error: Exception
    ) -> None:
        """Retry the rows of a failed step one by one; a row that ran alone fails."""
        with self._changed:
            for sequence, _ in reversed(chosen):
                if len(chosen) > 1:
                    self._scheduler.preempt(sequence, has_failed=True)
                    continue
                self._scheduler.remove(sequence, is_damaged=True)
                if not sequence.row.answered:
                    self._results.put(sequence.row.fail(*diagnose(error)))
            self._end_step(step)
