"""The server's side of its engine's process: one life of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess

from packhorse.errors import ConfigError, EngineError, ModelError, PackhorseError
from packhorse.serve import child
from packhorse.serve.channel import Channel, Message

STOP_SECONDS = 5.0
_LOADING_ERRORS = {"ConfigError": ConfigError, "ModelError": ModelError}


class EngineProcess:
    """One life of the engine. handle: gets its messages in the event loop.

    ended: set when it is gone. refusal: why it could not load, where it said so. Raises EngineError
    where the system has no process, file or thread for it.
    """

    def __init__(self, loading: child.EngineSpec, handle: Callable[[list[Message]], None]) -> None:
        self.ended = asyncio.Event()
        self.refusal: PackhorseError | None = None
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        try:
            self._process, self.channel = self._started(loading)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
            why = getattr(error, "strerror", None) or error
            raise EngineError(
                f"the engine's process cannot be started: {why}",
                "it needs memory, files and processes that the system has free",
            ) from error

    @property
    def exit_code(self) -> int | None:
        return self._process.exitcode

    async def stop(self, *, force: bool) -> None:
        """Asks it to end, and ends it if it does not; at_once: without asking."""
        self.channel.send({"kind": "stop"})
        try:
            await asyncio.wait_for(self.ended.wait(), 0 if force else STOP_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self.ended.wait()

    def kill(self) -> None:
        """Ends it at once, whatever it does; `ended` is set when it is gone."""
        self._process.kill()

    def _started(self, loading: child.EngineSpec) -> tuple[SpawnProcess, Channel]:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=child.main, args=(theirs, loading), name="packhorse-engine", daemon=True
        )
        try:
            with theirs:
                process.start()
            return process, Channel(ours, self._received, self._closed)
        except BaseException:
            ours.close()
            if process.pid is not None:
                process.kill()
                process.join()
            raise

    def _received(self, messages: list[Message]) -> None:
        self._call_in_loop(self._take, messages)

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            if message["kind"] == "refused":
                kind = _LOADING_ERRORS.get(message["error"], EngineError)
                self.refusal = kind(message["message"], message["hint"])
        self._handle(messages)

    def _closed(self) -> None:
        self._process.join(STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._call_in_loop(self.ended.set)

    def _call_in_loop(self, call: Callable[..., object], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)


def load_failure(exit_code: int | None) -> EngineError:
    """Why there is no engine, where it could not say so itself."""
    return EngineError(
        f"the engine's process ended with {exit_code} while it loaded the model",
        "what it wrote above says more; a negative number is a signal, -9 often too little memory",
    )
