"""Keeps an engine running in a process of its own, and feeds it.

What it runs when it dies is answered with `engine_restarted` (never tried again: it may be what
killed it); what waits goes on waiting for the next one, which starts after a back-off. An engine
that has work and gives no sign of it for too long is ended, as if it had died. One that does not
come back is started again and again, but nobody waits for it: see `MOST_FAILED_STARTS`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn

from packhorse.data import Failure, Prompt
from packhorse.errors import EngineError, PackhorseError
from packhorse.serve import child
from packhorse.serve.channel import Message
from packhorse.serve.draining import is_idle_in_time
from packhorse.serve.process import EngineProcess, died_loading
from packhorse.serve.prometheus import ServerMetrics
from packhorse.serve.request_queue import RequestQueue
from packhorse.serve.request_state import Finished, RequestState
from packhorse.serve.wire import Loaded, batch_message, read_log_probs, read_ready, read_timing

State = Literal["starting", "ready", "restarting", "unavailable", "draining", "stopped"]
FIRST_BACK_OFF_SECONDS = 0.5
LONGEST_BACK_OFF_SECONDS = 30.0
_LOOK_SECONDS = 1.0
STEADY_SECONDS = 60.0
"""An engine that ran this long did not die of being started."""
MOST_FAILED_STARTS = 3
"""In a row; then what waits is answered with `engine_unavailable`, and nothing more may wait until
the engine is back. A start has failed when the engine ends before it asks for its first batch."""
LONGEST_AWAY_SECONDS = 120.0
"""Without a loaded engine, until the same happens: one that is being loaded may hang."""
UNAVAILABLE = "the engine cannot be started at present"


class Supervisor:
    """Runs rows on an engine that may die. All methods belong to the event loop's thread.

    loading: what the process loads. report: called with lines for people. stall_seconds: of an
    engine without a sign until it counts as lost; 0 for never.

    keeping: the task that keeps the engine running, once there is one. It ends by itself only where
    the engine cannot be loaded at first, or by a fault of ours; nothing runs after that.
    guarding: the task that ends an engine that stalls, where it is wanted.
    """

    def __init__(
        self,
        loading: child.Loading,
        waiting: RequestQueue,
        figures: ServerMetrics,
        report: Callable[[str], None] = lambda text: None,
        stall_seconds: float = 0.0,
    ) -> None:
        self.state: State = "starting"
        self.waiting, self.figures = waiting, figures
        self.loaded: Loaded | None = None
        self.keeping: asyncio.Task[NoReturn] | None = None
        self._loading, self._report = loading, report
        self._stall_seconds, self._last_sign, self._is_stalled = stall_seconds, 0.0, False
        self.guarding: asyncio.Task[None] | None = None
        self._rows: dict[int, RequestState] = {}
        self._in_flight: set[int] = set()
        self._has_room = self._has_started = False
        self._failed_starts = 0
        self._away: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._engine: EngineProcess | None = None
        self._first: asyncio.Future[Loaded] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        figures.add_gauge("waiting_rows", "Rows that wait for the engine", waiting.__len__)
        figures.add_gauge(
            "waiting_tokens", "Prompt and new tokens that wait", lambda: waiting.tokens
        )
        figures.add_gauge("running_rows", "Rows in the engine", lambda: self.rows_running)
        figures.add_gauge("ready", "1 while requests are taken", lambda: self.state == "ready")

    @property
    def rows_running(self) -> int:
        """Rows in the engine, those whose clients have left included."""
        return len(self._in_flight)

    async def start(self) -> Loaded:
        """Returns once the engine is loaded. Raises PackhorseError if it cannot be."""
        self._first = asyncio.get_running_loop().create_future()
        self.keeping = asyncio.create_task(self._keep_running())
        if self._stall_seconds:
            self.guarding = asyncio.create_task(self._end_stalled())
        first: list[asyncio.Future[Any]] = [self._first, self.keeping]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if self.keeping.done():
            self.keeping.result()
        return self._first.result()

    def submit(self, prompts: Sequence[Prompt]) -> list[RequestState] | None:
        """Lets all of `prompts` run, or none: None where too many wait. Each index is its own."""
        now = time.monotonic()
        if not self.waiting.add(prompts, now):
            return None
        rows = [RequestState(prompt, now) for prompt in prompts]
        self._rows.update((row.prompt.index, row) for row in rows)
        self._idle.clear()
        self._feed()
        return rows

    def abandon(self, rows: Sequence[RequestState]) -> None:
        """Nobody waits for these any more: those that wait leave, those that run end at their next
        token; rows that are done are left as they are."""
        running = []
        for row in rows:
            index = row.prompt.index
            if self._rows.pop(index, None) is None:
                continue
            self.figures.rows_abandoned.inc()
            if not self.waiting.remove(index) and index in self._in_flight:
                running.append(index)
        if running and self._engine is not None:
            self._engine.channel.send({"kind": "cancel", "rows": running})
        self._note_idle()

    async def drain(self, seconds: float, hurried: asyncio.Event) -> bool:
        """Lets what waits and runs end, for so long and until `hurried` is set; then the rest is
        answered with `shutting_down`. Returns whether all of it ended by itself."""
        self.state = "draining"
        is_clean = await is_idle_in_time(self._idle, seconds, hurried)
        self._fail(list(self._rows), "shutting_down", "the server is shutting down")
        return is_clean

    async def stop(self) -> None:
        """Ends the engine's process; rows that are left are answered with `shutting_down`."""
        self.state = "stopped"
        for each in (self.keeping, self.guarding, self._away):
            if each is not None:
                each.cancel()
        self._fail(list(self._rows), "shutting_down", "the server is shutting down")
        if self._engine is not None:
            await self._engine.end(at_once=bool(self._in_flight))

    async def _keep_running(self) -> NoReturn:
        """Raises PackhorseError where the engine cannot be loaded at first."""
        back_off = FIRST_BACK_OFF_SECONDS
        while True:
            started = time.monotonic()
            why = await self._live()
            self._lose_engine()
            if self.loaded is None:
                raise why
            if time.monotonic() - started > STEADY_SECONDS:
                back_off = FIRST_BACK_OFF_SECONDS
            self._report(f"the engine is restarted in {back_off:g} s: {why}")
            await asyncio.sleep(back_off)
            back_off = min(2 * back_off, LONGEST_BACK_OFF_SECONDS)

    async def _live(self) -> PackhorseError:
        """One life of the engine, from its start to its end; returns why it ended."""
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
            return died_loading(engine.exit_code)
        if was_stalled:
            return EngineError(f"it made no progress for {self._stall_seconds:g} s")
        return EngineError(f"it ended with {engine.exit_code}")

    async def _end_stalled(self) -> None:
        """Ends an engine that has had work for `stall_seconds` and gave no sign.

        A look counts for twice the pause before it at most: if far more time went by, this process
        did not run itself (the machine was suspended, both were stopped), and nor did the engine.
        """
        pause = min(_LOOK_SECONDS, self._stall_seconds / 4)
        looked, silent = time.monotonic(), 0.0
        while True:
            await asyncio.sleep(pause)
            now = time.monotonic()
            is_silent = self._has_work() and self._last_sign < looked
            silent = silent + min(now - looked, 2 * pause) if is_silent else 0.0
            looked = now
            engine = self._engine
            if silent > self._stall_seconds and engine is not None:
                silent = 0.0
                self._is_stalled = True
                self.figures.engine_stalls.inc()
                engine.kill()
                await engine.ended.wait()

    def _has_work(self) -> bool:
        """Whether a loaded engine runs rows, or could but does not ask for those that wait."""
        if self.waiting.batching is None:
            return False
        return bool(self._in_flight) or (len(self.waiting) > 0 and not self._has_room)

    def _lose_engine(self) -> None:
        self._engine = None
        self.waiting.batching, self._has_room = None, False
        if self.state == "ready":
            self.state = "restarting"
        self.figures.engine_restarts.inc()
        lost, self._in_flight = self._in_flight, set()
        message = "the engine stopped while it ran this request; it is being restarted"
        self._fail([index for index in lost if index in self._rows], "engine_restarted", message)
        self._failed_starts = 0 if self._has_started else self._failed_starts + 1
        if self._failed_starts >= MOST_FAILED_STARTS:
            self._let_nobody_wait()
        elif self._away is None:
            loop = asyncio.get_running_loop()
            self._away = loop.call_later(LONGEST_AWAY_SECONDS, self._let_nobody_wait)

    def _let_nobody_wait(self) -> None:
        """Until there is an engine again."""
        if self.state == "restarting":
            self.state = "unavailable"
            self._report("the engine does not come back; until it does, requests get 503")
        self._fail(list(self._rows), "engine_unavailable", UNAVAILABLE)

    def _handle(self, messages: list[Message]) -> None:
        self._last_sign = time.monotonic()
        for message in messages:
            match message["kind"]:
                case "token":
                    self._take_token(message["row"], message["id"], message.get("log_probs"))
                case "done":
                    self._in_flight.discard(message["row"])
                    self._settle(message["row"], self._outcome(message))
                case "failed":
                    row = message["row"]
                    self._in_flight.discard(row)
                    self._settle(row, Failure(row, message["code"], message["message"]))
                case "room":
                    self._has_room = self._has_started = True
                case "ready":
                    self._be_ready(read_ready(message))
                case "report":
                    self._report(message["text"])
        self._feed()

    def _be_ready(self, loaded: Loaded) -> None:
        self.loaded, self.waiting.batching = loaded, loaded.batching
        if self._away is not None:
            self._away.cancel()
            self._away = None
        if self.state in ("starting", "restarting", "unavailable"):
            self.state = "ready"
        self._report(loaded.description)
        if self._first is not None and not self._first.done():
            self._first.set_result(loaded)

    def _take_token(self, index: int, token_id: int, log_probs: list[Any] | None) -> None:
        row = self._rows.get(index)
        is_first = row is not None and not row.token_ids
        self.figures.count_token(time.monotonic() - row.arrived if row and is_first else None)
        if row is not None:
            row.add(token_id, read_log_probs(token_id, log_probs) if log_probs else None)

    def _outcome(self, message: Message) -> Finished | Failure:
        """Of a row that the engine says is done: its tokens have come before, all of them."""
        index, generated = message["row"], message["tokens"]
        row = self._rows.get(index)
        if row is not None and len(row.token_ids) != generated:
            text = f"{generated} tokens were generated, {len(row.token_ids)} of them arrived"
            return Failure(index, "engine_error", text)
        return Finished(message["reason"], read_timing(message["timing"]))

    def _settle(self, index: int, outcome: Finished | Failure) -> None:
        row = self._rows.pop(index, None)
        if row is not None:
            row.finish(outcome)
            if isinstance(outcome, Failure):
                self.figures.count_failed(outcome.code)
            else:
                self.figures.count_completed(row.prompt, row.arrived, outcome.timing.submitted)
        self._note_idle()

    def _fail(self, indexes: Sequence[int], code: str, message: str) -> None:
        for index in indexes:
            self.waiting.remove(index)
            self._settle(index, Failure(index, code, message))

    def _note_idle(self) -> None:
        if not self._rows:
            self._idle.set()

    def _feed(self) -> None:
        """Sends the engine a batch if it has room and one is due, or looks again when one is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._has_room or self._engine is None:
            return
        now = time.monotonic()
        batch = self.waiting.take(now)
        if batch is not None:
            self._has_room = False
            self._in_flight.update(prompt.index for prompt in batch.prompts)
            self.figures.count_batch(batch)
            self._engine.channel.send(batch_message(batch))
        elif (due := self.waiting.due_at()) is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, due - now), self._feed)
