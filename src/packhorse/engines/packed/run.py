"""A run of the packed engine: worker threads that compute steps, and callers that bring rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from packhorse.data import Batch, Scores, TokenLogProbs
from packhorse.engines.common.grammars import Grammars
from packhorse.engines.common.log_probs import wanted_log_probs
from packhorse.engines.common.rows import CallbackError, Row, diagnose, force_tokens, settle
from packhorse.engines.common.rows import Result as Generated
from packhorse.engines.common.sampling import choose_tokens, row_generator, wants_all_logits
from packhorse.engines.packed.caller import NEEDS_INPUT, Caller
from packhorse.engines.packed.network import Network
from packhorse.engines.packed.scheduler import Scheduler, Sequence, pack
from packhorse.engines.packed.scoring import Scoring
from packhorse.engines.packed.scratch import SAMPLED_AT_ONCE, Scratch, Step, empty_step
from packhorse.errors import EngineError

Result = Generated | Scores
QUEUE_SHARE = 4
"""The queue holds up to 1 / QUEUE_SHARE as many rows as may run at once."""


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


class Run:
    """Worker threads that compute the rows of all callers that are attached.

    Rows of several callers are computed in the same steps.

    Args:
        network: Model; used by this run alone while it lasts.
        scheduler: Scheduler; used by this run alone.
        scratches: Scratch buffers, one per thread.
        end_ids: Token ids that end a row.
        grammars: Compiled grammars of structured outputs.
        max_context: Maximum number of prompt and generated tokens per row.
        scoring: Continuations to score, for a run with a single caller; None to generate.
    """

    def __init__(
        self,
        network: Network,
        scheduler: Scheduler,
        scratches: list[Scratch],
        end_ids: frozenset[int],
        grammars: Grammars,
        max_context: int,
        scoring: Scoring | None = None,
    ) -> None:
        self._network, self._scheduler, self._scratches = network, scheduler, scratches
        self._end_ids, self._grammars, self._max_context = end_ids, grammars, max_context
        self.scoring = scoring
        self._queue_rows = max(1, len(scheduler.block_tables) // QUEUE_SHARE)
        self._callers: list[Caller] = []
        self._changed = threading.Condition()
        self._is_cancelled = False
        self._shared: _SharedStep | None = None
        self._threads = [
            threading.Thread(target=self._run_steps, args=(scratch,), name="packed", daemon=True)
            for scratch in scratches
        ]

    def attach(self, caller: Caller) -> None:
        """Let a caller bring rows; the first one starts the worker threads.

        Raises:
            EngineError: The run has failed, and other callers have not noticed yet.
        """
        with self._changed:
            if self._is_cancelled:
                raise EngineError("the run of other rows failed", "finish or close it first")
            self._callers.append(caller)
            is_first = self._threads[0].ident is None
        if is_first:
            for thread in self._threads:
                thread.start()

    def detach(self, caller: Caller) -> bool:
        """Drop the rows of a caller; return whether it was the last one, so that the run is over.

        Returns when no thread computes a row of the caller.
        """
        with self._changed:
            caller.is_closed = True
            self._callers.remove(caller)
            is_last = not self._callers
            self._is_cancelled |= is_last
            while not self._is_cancelled and self._scheduler.discard(caller):
                self._changed.wait()
            self._changed.notify_all()
        if is_last:
            self._join()
        return is_last

    def results(self, caller: Caller, batches: Iterator[Batch]) -> Iterator[Result]:
        """Yield results of an attached caller as its rows finish.

        Rows are pulled when there is room; finished results are yielded first.
        """
        outstanding = 0
        while caller.has_input or outstanding:
            while self._needs_input(caller) and caller.results.empty():
                batch = next(batches, None)
                if batch is None:
                    self._end_input(caller)
                    break
                outstanding += len(batch.prompts)
                for failure in self._enqueue(batch, caller):
                    outstanding -= 1
                    yield failure
            if not (caller.has_input or outstanding):
                return
            outcome = caller.results.get()
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is not NEEDS_INPUT:
                outstanding -= 1
                yield outcome  # type: ignore[misc]

    def cancel(self) -> None:
        """Stop because the engine is closed: callers get an EngineError."""
        error = EngineError("the engine was closed during a run", "load the model again")
        with self._changed:
            self._is_cancelled = True
            self._changed.notify_all()
        self._join()
        self._raise_in_callers(error)

    def _join(self) -> None:
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _raise_in_callers(self, error: BaseException) -> None:
        with self._changed:
            for caller in self._callers:
                caller.results.put(error)

    def _enqueue(self, batch: Batch, caller: Caller) -> Iterator[Result]:
        """Queue the rows of a batch; yield results of rows that need not or cannot run."""
        rows = [Row(prompt) for prompt in batch.prompts]
        vocabulary, positions = self._network.arch.vocabulary, self._network.arch.positions
        trained = self._network.arch.decoder.trained_length
        accepted = []
        for row in rows:
            prompt = row.prompt
            last = len(prompt.token_ids) + prompt.decoding.max_new_tokens
            if result := settle(row, self._max_context, vocabulary):
                yield result
            elif positions and last > positions:
                yield row.fail(
                    "engine_error", f"{last} positions are needed, the model has {positions}"
                )
            else:
                paths = [] if self.scoring is None else list(self.scoring.paths)
                longest = max(map(len, paths), default=0)
                if len(prompt.token_ids) <= trained < len(prompt.token_ids) + longest:
                    yield row.fail(
                        "engine_error",
                        f"continuations of {longest} tokens exceed the {trained} tokens below "
                        "which the model's rotations are short",
                    )
                    continue
                sequence = Sequence(row, (), row_generator(prompt.decoding), pending_paths=paths)
                sequence.caller = caller
                if 0 < trained < len(prompt.token_ids):
                    sequence.rotation_offset = self._network.rotation_offset
                # Logits of a prefix that another row computed are gone.
                shared = 0 if row.needs_prompt_log_probs else batch.shared_prefix
                sequence.prefix = sequence.cache_key(prompt.token_ids[:shared])
                accepted.append(sequence)
        with self._changed:
            self._scheduler.add(accepted)
            self._changed.notify_all()

    def _needs_input(self, caller: Caller) -> bool:
        with self._changed:
            caller.input_requested = False
            return caller.has_input and len(self._scheduler.waiting) < self._queue_rows

    def _end_input(self, caller: Caller) -> None:
        with self._changed:
            caller.has_input = False
            self._changed.notify_all()

    def _request_input(self) -> None:
        """Wake callers if there is room for more rows; called with the lock."""
        if len(self._scheduler.waiting) < self._queue_rows:
            for caller in self._callers:
                if caller.has_input and not caller.input_requested:
                    caller.input_requested = True
                    caller.results.put(NEEDS_INPUT)

    def _run_steps(self, scratch: Scratch) -> None:
        """Compute steps in a worker thread until no caller is attached."""
        usual = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            step = empty_step(len(scratch.residual), len(self._scheduler.block_tables))
            while work := self._next_work(step, scratch):
                if isinstance(work, _SharedStep):
                    self._help(work, scratch)
                else:
                    self._compute(work, step, scratch)
        except BaseException as error:  # noqa: BLE001 - `results` raises it in callers' threads
            with self._changed:
                self._is_cancelled = True
                self._changed.notify_all()
            self._raise_in_callers(error)
        finally:
            torch.set_num_threads(usual)

    def _next_work(self, step: Step, scratch: Scratch) -> list[tuple[Sequence, int]] | _SharedStep:
        """Wait for work: the rows of the next step, or a step to help with; nothing at the end."""
        with self._changed:
            while not self._is_cancelled:
                if self._shared is None:
                    chosen = self._scheduler.schedule()
                    self._request_input()
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
            if self.scoring is not None:
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
                elif sequence.num_remaining_tokens == 1 and not sequence.path:
                    trained = self._network.arch.decoder.trained_length
                    offset = self._network.rotation_offset
                    self._scheduler.restart_if_longer(sequence, trained, offset)
            self._end_step(step)
        for caller, outcome in results:
            caller.results.put(outcome)

    def _end_step(self, step: Step) -> None:
        """Let the next step begin; called with the lock."""
        if self._shared is not None and self._shared.step is step:
            self._shared = None
        self._changed.notify_all()

    def _collect_results(
        self, ending: list[Sequence], step: Step, scratch: Scratch
    ) -> list[tuple[Caller, Result]]:
        """Return the results of rows that finish with this step, and whose they are."""
        if self.scoring is not None:
            found = self.scoring.log_probs(ending, step, self._network, scratch)
            with self._changed:
                caller = ending[0].caller if ending else None
                return [(caller, each) for each in self.scoring.results(found) if caller]
        results: list[tuple[Caller, Result]] = []
        for sequence, token, log_probs in self._choose_tokens(ending, scratch):
            row, caller = sequence.row, sequence.caller
            if caller.is_closed:
                row.answered = True
                continue
            result: Result | None
            if not row.prompt.decoding.max_new_tokens:
                result = row.finish_prompt()
            elif token is None:
                result = row.fail_without_token()
            else:
                try:
                    result = row.take(token, self._end_ids, caller.on_token, log_probs)
                except CallbackError as raised:
                    caller.is_closed = row.answered = True
                    caller.results.put(raised.error)
                    continue
            if result is not None:
                results.append((caller, result))
        return results

    def _choose_tokens(
        self, ending: list[Sequence], scratch: Scratch
    ) -> Iterator[tuple[Sequence, int | None, TokenLogProbs | None]]:
        """Yield the next token of each row, and its log-probabilities if they were requested.

        The token is None for a row whose logits are not finite. Logits after other tokens of a
        prompt than its last go to `Row.take_prompt_logits`.
        """
        simple = sum(not wants_all_logits(each.row.prompt.decoding) for each in ending)
        best, best_at = self._network.choose(simple, scratch)
        chosen = [
            token if number else None
            for token, number in zip(best_at.tolist(), np.isfinite(best).tolist(), strict=True)
        ]
        force_tokens(chosen, [sequence.row for sequence in ending[:simple]])
        for sequence, token in zip(ending[:simple], chosen, strict=True):
            yield sequence, token, None
        for first in range(simple, len(ending), SAMPLED_AT_ONCE):
            rows = slice(first, min(len(ending), first + SAMPLED_AT_ONCE))
            logits = self._network.logits(rows, scratch)
            kept: list[int] = []
            for place, sequence in enumerate(ending[rows]):
                if sequence.row.needs_prompt_log_probs:
                    sequence.row.take_prompt_logits(logits[place])
                else:
                    kept.append(place)
            if kept:
                logits = logits if len(kept) == len(logits) else logits[kept]
                yield from self._sample([ending[first + place] for place in kept], logits)

    def _sample(
        self, sequences: list[Sequence], logits: NDArray[np.float32]
    ) -> Iterator[tuple[Sequence, int | None, TokenLogProbs | None]]:
        decodings = [sequence.row.prompt.decoding for sequence in sequences]
        chosen = choose_tokens(
            torch.from_numpy(logits),
            decodings,
            [sequence.rng for sequence in sequences],
            lambda place, values: sequences[place].row.change_logits(
                values, self._end_ids, self._grammars
            ),
            lambda place, values: sequences[place].row.best_token(
                values, self._end_ids, self._grammars
            ),
        )
        force_tokens(chosen, [sequence.row for sequence in sequences])
        found = wanted_log_probs(chosen, decodings, logits.__getitem__)
        for place, (sequence, token) in enumerate(zip(sequences, chosen, strict=True)):
            yield sequence, token, found.get(place)

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
                    sequence.caller.results.put(sequence.row.fail(*diagnose(error)))
            self._end_step(step)
