"""One `run` of the packed engine: threads that compute steps, and the rows they pass around."""

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
from packhorse.engines.common.rows import NOT_NUMBERS, CallbackError, Row, diagnose, refuse
from packhorse.engines.common.rows import Result as Generated
from packhorse.engines.common.sampling import choose_tokens, row_generator, wants_all_logits
from packhorse.engines.packed.network import SAMPLED_AT_ONCE, Network, Scratch, Step, empty_step
from packhorse.engines.packed.scheduler import Scheduler, Sequence, pack
from packhorse.engines.packed.scoring import Scoring
from packhorse.errors import EngineError

Result = Generated | Scores
QUEUE_SHARE = 4
"""Rows wait for their turn up to this share of the rows under way."""


@dataclass(frozen=True, slots=True)
class _WorkerExit:
    """A thread ended, by `error` or because nothing was left."""

    error: BaseException | None


NEEDS_INPUT = object()
"""Wakes the caller's thread: there is room for more rows."""


class Run:
    """Rows from `batches` to results.

    network, scheduler: of this run alone while it lasts. scratches: one a thread. end_ids: token
    ids that end a row. scoring: what is asked of rows that are scored; None for rows that generate.
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
        self._threads = [
            threading.Thread(target=self._run_steps, args=(scratch,), name="packed", daemon=True)
            for scratch in scratches
        ]

    def results(self, batches: Iterator[Batch]) -> Iterator[Result]:
        """Results as rows finish. Rows are pulled as there is room; ready results go first."""
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
        """Ends the steps under way and waits for them. closes: the engine is closed."""
        with self._changed:
            self._is_cancelled = True
            self._was_closed |= closes and self._has_work()
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _enqueue(self, batch: Batch) -> Iterator[Result]:
        """Lets a batch's rows wait for their turn; yields those that cannot run."""
        rows = [Row(prompt) for prompt in batch.prompts]
        vocabulary, positions = self._network.arch.vocabulary, self._network.arch.positions
        accepted = []
        for row in rows:
            prompt = row.prompt
            last = len(prompt.token_ids) + prompt.decoding.max_new_tokens
            if failure := refuse(row, self._max_context, vocabulary):
                yield failure
            elif positions and last > positions:
                yield row.fail("engine_error", f"the model has {positions} positions, not {last}")
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
        """Computes steps until nothing is left, in a thread of its own."""
        usual, error = torch.get_num_threads(), None
        torch.set_num_threads(1)
        try:
            step = empty_step(len(scratch.residual), len(self._scheduler.block_tables))
            while chosen := self._schedule_step():
                self._compute(chosen, step, scratch)
        except CallbackError as raised:
            error = raised.error
        except BaseException as raised:  # noqa: BLE001 - `results` raises it in the caller's thread
            error = raised
        finally:
            torch.set_num_threads(usual)
            self._results.put(_WorkerExit(error))

    def _schedule_step(self) -> list[tuple[Sequence, int]]:
        """Rows of the next step, once there are some; none when nothing is left to do."""
        with self._changed:
            while not self._is_cancelled and self._has_work():
                chosen = self._scheduler.schedule()
                if self._has_input and len(self._scheduler.waiting) < self._queue_rows:
                    if not self._input_requested:
                        self._results.put(NEEDS_INPUT)
                    self._input_requested = True
                if chosen:
                    return chosen
                self._changed.wait()
            self._changed.notify_all()
            return []

    def _compute(self, chosen: list[tuple[Sequence, int]], step: Step, scratch: Scratch) -> None:
        try:
            ending = pack(chosen, step)
            self._network.run(step, self._scheduler.block_tables, scratch)
            results = self._collect_results(ending, step, scratch)
        except Exception as error:  # noqa: BLE001 - what libraries raise is not theirs to choose
            self._retry_separately(chosen, error)
            return
        with self._changed:
            for sequence, count in chosen:
                self._scheduler.advance(sequence, count)
                if sequence.row.answered or sequence.num_remaining_tokens == 0:
                    self._scheduler.remove(sequence, is_damaged=sequence.row.failed)
                elif sequence.pending_paths:
                    self._scheduler.fork(sequence)
            self._changed.notify_all()
        for outcome in results:
            self._results.put(outcome)

    def _collect_results(
        self, ending: list[Sequence], step: Step, scratch: Scratch
    ) -> list[Result]:
        """Results of rows that end with this step."""
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
        """The next token of each row, None for one whose logits are no numbers; by place, the
        log-probabilities of those that ask for them."""
        decodings = [sequence.row.prompt.decoding for sequence in ending]
        simple = len(ending) - sum(map(wants_all_logits, decodings))
        best, best_at = self._network.choose(simple, scratch)
        tokens: list[int | None] = [
            token if number else None
            for token, number in zip(best_at.tolist(), np.isfinite(best).tolist(), strict=True)
        ]
        log_probs: dict[int, TokenLogProbs] = {}
        for first in range(simple, len(ending), SAMPLED_AT_ONCE):
            rows = slice(first, min(len(ending), first + SAMPLED_AT_ONCE))
            logits = self._network.logits(rows, scratch)
            rngs = [sequence.rng for sequence in ending[rows]]
            chosen = choose_tokens(torch.from_numpy(logits), decodings[rows], rngs)
            found = wanted_log_probs(chosen, decodings[rows], logits.__getitem__)
            log_probs |= {first + place: each for place, each in found.items()}
            tokens += chosen
        return tokens, log_probs

    def _retry_separately(self, chosen: list[tuple[Sequence, int]], error: Exception) -> None:
        """A step failed: its rows are tried again one by one; one that was alone has failed."""
        with self._changed:
            for sequence, _ in reversed(chosen):
                if len(chosen) > 1:
                    self._scheduler.preempt(sequence, has_failed=True)
                    continue
                self._scheduler.remove(sequence, is_damaged=True)
                if not sequence.row.answered:
                    self._results.put(sequence.row.fail(*diagnose(error)))
            self._changed.notify_all()
