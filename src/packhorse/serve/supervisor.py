"""Run the engine in a child process, restart it when it dies, and send it batches.

Rows that run when the engine dies fail with `engine_restarted`. They are not retried, because one
of them may be the cause. Rows in the queue wait for the next engine, which starts after a backoff.
An engine that has work and sends no message for too long is killed. If the engine cannot be
restarted, starts are repeated, but requests fail at once: see `MAX_FAILED_STARTS`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn

from packhorse.data import Failure, Prompt
from packhorse.errors import EngineError, PackhorseError
from packhorse.serve import child
from packhorse.serve.background import wait_until_idle
from packhorse.serve.channel import Message
from packhorse.serve.process import EngineProcess, load_failure
from packhorse.serve.prometheus import ServerMetrics
from packhorse.serve.request_queue import RequestQueue
from packhorse.serve.request_state import Finished, RequestState
from packhorse.serve.wire import (
    LoadedEngine,
    batch_message,
    read_log_probs,
    read_prompt,
    read_ready,
    read_timing,
)

State = Literal["starting", "ready", "restarting", "unavailable", "draining", "stopped"]
INITIAL_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
_POLL_SECONDS = 1.0
STABLE_SECONDS = 60.0
"""An engine that ran this long resets the backoff: its start did not kill it."""
MAX_FAILED_STARTS = 3
"""Consecutive failed starts after which queued rows fail with `engine_unavailable`, and new
requests are refused until the engine is back. A start fails if the engine ends before its first
batch."""
MAX_ENGINE_ABSENCE_SECONDS = 120.0
"""Time without a loaded engine after which the same happens, because loading may hang. Time in
which this process was suspended does not count."""
UNAVAILABLE = "the engine cannot be started at present"


class Supervisor:
    """Runs rows on an engine that may die. Call all methods from the event loop's thread.

    Args:
        loading: what the engine process loads.
        waiting: the queue of rows.
        metrics: counters to update.
        report: called with one line per event that an operator should see.
        stall_seconds: kill an engine that has work and sends no message for this long; 0 never.

    Attributes:
        engine_task: keeps the engine running. It ends by itself only if the first load fails or by
            a bug; no row runs after that.
        stall_task: kills an engine that stalls; None if `stall_seconds` is 0.
    """

    def __init__(
        self,
        loading: child.EngineSpec,
        waiting: RequestQueue,
        metrics: ServerMetrics,
        report: Callable[[str], None] = lambda text: None,
        stall_seconds: float = 0.0,
    ) -> None:
        self.state: State = "starting"
        self.waiting, self.metrics = waiting, metrics
        self.loaded: LoadedEngine | None = None
        self.engine_task: asyncio.Task[NoReturn] | None = None
        self._loading, self._report = loading, report
        self._stall_seconds, self._last_message_at, self._is_stalled = stall_seconds, 0.0, False
        self.stall_task: asyncio.Task[None] | None = None
        self._rows: dict[int, RequestState] = {}
        self._in_flight: set[int] = set()
        self._wants_batch = self._has_started = False
        self._failed_starts = 0
        self._absence_task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._engine: EngineProcess | None = None
        self._first_load: asyncio.Future[LoadedEngine] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.add_gauge("waiting_rows", "Rows in the queue", waiting.__len__)
        metrics.add_gauge(
            "waiting_tokens", "Prompt and new tokens of rows in the queue", lambda: waiting.tokens
        )
        metrics.add_gauge("running_rows", "Rows in the engine", lambda: self.rows_running)
        metrics.add_gauge("ready", "1 while requests are taken", lambda: self.state == "ready")

    @property
    def rows_running(self) -> int:
        """Rows in the engine, including those of clients that disconnected."""
        return len(self._in_flight)

    async def start(self) -> LoadedEngine:
        """Start the engine; return once it is loaded. Raises PackhorseError if loading fails."""
        self._first_load = asyncio.get_running_loop().create_future()
        self.engine_task = asyncio.create_task(self._run_engine())
        if self._stall_seconds:
            self.stall_task = asyncio.create_task(self._kill_stalled_engine())
        first: list[asyncio.Future[Any]] = [self._first_load, self.engine_task]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if self.engine_task.done():
            self.engine_task.result()
        return self._first_load.result()

    def submit(self, prompts: Sequence[Prompt]) -> list[RequestState] | None:
        """Queue all of `prompts`, or none: return None if the queue is full. Indexes are unique."""
        now = time.monotonic()
        if not self.waiting.add(prompts, now):
            return None
        rows = [RequestState(prompt, now) for prompt in prompts]
        self._rows.update((row.prompt.index, row) for row in rows)
        self._idle.clear()
        self._send_due_batch()
        return rows

    def abort(self, rows: Sequence[RequestState]) -> None:
        """Remove queued rows and end running ones at their next token; finished rows stay as they
        are."""
        running = []
        for row in rows:
            index = row.prompt.index
            if self._rows.pop(index, None) is None:
                continue
            self.metrics.rows_abandoned.inc()
            if not self.waiting.remove(index) and index in self._in_flight:
                running.append(index)
        if running and self._engine is not None:
            self._engine.channel.send({"kind": "cancel", "rows": running})
        self._update_idle()

    async def drain(self, seconds: float, force_exit: asyncio.Event) -> bool:
        """Wait for queued and running rows, at most `seconds` or until `force_exit` is set.

        The rest fails with `shutting_down`. Return whether all rows finished.
        """
        self.state = "draining"
        is_clean = await wait_until_idle(self._idle, seconds, force_exit)
        self._fail(list(self._rows), "shutting_down", "the server is shutting down")
        return is_clean

    async def stop(self) -> None:
        """Stop the engine process; remaining rows fail with `shutting_down`."""
        self.state = "stopped"
        for each in (self.engine_task, self.stall_task, self._absence_task):
            if each is not None:
                each.cancel()
        self._fail(list(self._rows), "shutting_down", "the server is shutting down")
        if self._engine is not None:
            await self._engine.stop(force=bool(self._in_flight))

    async def _run_engine(self) -> NoReturn:
        """Start the engine again and again. Raises PackhorseError if the first load fails."""
        backoff = INITIAL_BACKOFF_SECONDS
        while True:
            started = time.monotonic()
            why = await self._run_engine_once()
            self._handle_engine_exit()
            if self.loaded is None:
                raise why
            if time.monotonic() - started > STABLE_SECONDS:
                backoff = INITIAL_BACKOFF_SECONDS
            self._report(f"the engine is restarted in {backoff:g} s: {why}")
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)

    async def _run_engine_once(self) -> PackhorseError:
        """Run one engine process to its end; return why it ended."""
        self._has_started = False
        try:
            self._engine = engine = EngineProcess(self._loading, self._handle)
        except EngineError as error:
            return error
        await engine.ended.wait()
        return engine.refusal or self._why_lost(engine)

    def _why_lost(self, engine: EngineProcess) -> EngineError:
        was_stalled, self._is_stalled = self._is_stalled, False
        if self.loaded is None:
            return load_failure(engine.exit_code)
        if was_stalled:
            return EngineError(f"it made no progress for {self._stall_seconds:g} s")
        return EngineError(f"it ended with {engine.exit_code}")

    async def _kill_stalled_engine(self) -> None:
        """Ends an engine that has had work for `stall_seconds` and gave no sign.

        A look counts for twice the pause before it at most: if far more time went by, this process
        did not run itself (the machine was suspended, both were stopped), and nor did the engine.
        """
        pause = min(_POLL_SECONDS, self._stall_seconds / 4)
        looked, silent = time.monotonic(), 0.0
        while True:
            await asyncio.sleep(pause)
            now = time.monotonic()
            is_silent = self._has_work() and self._last_message_at < looked
            silent = silent + _running_seconds(looked, pause) if is_silent else 0.0
            looked = now
            engine = self._engine
            if silent > self._stall_seconds and engine is not None:
                silent = 0.0
                self._is_stalled = True
                self.metrics.engine_stalls.inc()
                engine.kill()
                await engine.ended.wait()

    def _has_work(self) -> bool:
        """Return whether a loaded engine runs rows, or does not ask for queued ones."""
        if self.waiting.batching is None:
            return False
        return bool(self._in_flight) or (len(self.waiting) > 0 and not self._wants_batch)

    def _handle_engine_exit(self) -> None:
        self._engine = None
        self.waiting.batching, self._wants_batch = None, False
        if self.state == "ready":
            self.state = "restarting"
        self.metrics.engine_restarts.inc()
        lost, self._in_flight = self._in_flight, set()
        message = "the engine stopped while it ran this request; it is being restarted"
        self._fail([index for index in lost if index in self._rows], "engine_restarted", message)
        self._failed_starts = 0 if self._has_started else self._failed_starts + 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            self._fail_until_restarted()
        elif self._absence_task is None:
            self._absence_task = asyncio.create_task(self._watch_absence())

    async def _watch_absence(self) -> None:
        """Stop making requests wait once the engine has been absent for too long."""
        absent = 0.0
        while absent < MAX_ENGINE_ABSENCE_SECONDS:
            pause = min(_POLL_SECONDS, MAX_ENGINE_ABSENCE_SECONDS - absent)
            slept_at = time.monotonic()
            await asyncio.sleep(pause)
            absent += _running_seconds(slept_at, pause)
        self._fail_until_restarted()

    def _fail_until_restarted(self) -> None:
        """Fail queued rows, and refuse new ones until the engine is back."""
        if self.state == "restarting":
            self.state = "unavailable"
            self._report("the engine does not come back; until it does, requests get 503")
        self._fail(list(self._rows), "engine_unavailable", UNAVAILABLE)

    def _handle(self, messages: list[Message]) -> None:
        self._last_message_at = time.monotonic()
        for message in messages:
            match message["kind"]:
                case "token":
                    self._add_token(message["row"], message["id"], message.get("log_probs"))
                case "done":
                    self._in_flight.discard(message["row"])
                    self._finish_row(message["row"], self._outcome(message))
                case "failed":
                    row = message["row"]
                    self._in_flight.discard(row)
                    self._finish_row(row, Failure(row, message["code"], message["message"]))
                case "wants_batch":
                    self._wants_batch = self._has_started = True
                case "ready":
                    self._mark_ready(read_ready(message))
                case "report":
                    self._report(message["text"])
        self._send_due_batch()

    def _mark_ready(self, loaded: LoadedEngine) -> None:
        self.loaded, self.waiting.batching = loaded, loaded.batching
        if self._absence_task is not None:
            self._absence_task.cancel()
            self._absence_task = None
        if self.state in ("starting", "restarting", "unavailable"):
            self.state = "ready"
        self._report(loaded.description)
        if self._first_load is not None and not self._first_load.done():
            self._first_load.set_result(loaded)

    def _add_token(self, index: int, token_id: int, log_probs: list[Any] | None) -> None:
        row = self._rows.get(index)
        is_first = row is not None and not row.token_ids
        self.metrics.count_token(time.monotonic() - row.arrived if row and is_first else None)
        if row is not None:
            row.add(token_id, read_log_probs(token_id, log_probs) if log_probs else None)

    def _outcome(self, message: Message) -> Finished | Failure:
        """Return the outcome of a row that the engine reports done; its tokens came before."""
        index, generated = message["row"], message["tokens"]
        row = self._rows.get(index)
        if row is not None and len(row.token_ids) != generated:
            text = f"{generated} tokens were generated, {len(row.token_ids)} of them arrived"
            return Failure(index, "engine_error", text)
        if row is not None and "prompt" in message:
            row.prompt_log_probs = read_prompt(message["prompt"])
        return Finished(message["reason"], read_timing(message["timing"]))

    def _finish_row(self, index: int, outcome: Finished | Failure) -> None:
        row = self._rows.pop(index, None)
        if row is not None:
            row.finish(outcome)
            if isinstance(outcome, Failure):
                self.metrics.count_failed(outcome.code)
            else:
                self.metrics.count_completed(row.prompt, row.arrived, outcome.timing.submitted)
        self._update_idle()

    def _fail(self, indexes: Sequence[int], code: str, message: str) -> None:
        for index in indexes:
            self.waiting.remove(index)
            self._finish_row(index, Failure(index, code, message))

    def _update_idle(self) -> None:
        if not self._rows:
            self._idle.set()

    def _send_due_batch(self) -> None:
        """Send the engine a batch if it wants one and one is due; else set a timer for then."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._wants_batch or self._engine is None:
            return
        now = time.monotonic()
        batch = self.waiting.next_batch(now)
        if batch is not None:
            self._wants_batch = False
            self._in_flight.update(prompt.index for prompt in batch.prompts)
            self.metrics.count_batch(batch)
            self._engine.channel.send(batch_message(batch))
        elif (due := self.waiting.next_batch_at()) is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, due - now), self._send_due_batch)


def _running_seconds(since: float, pause: float) -> float:
    """Return the seconds since a sleep of `pause` seconds began, at most twice `pause`.

    If much more time went by, this process did not run itself (the machine was suspended, or the
    process was stopped), and neither did the engine.
    """
    return min(time.monotonic() - since, 2 * pause)
