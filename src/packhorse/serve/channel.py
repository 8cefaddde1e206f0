"""Messages between the server and its engine's process: lists of JSON documents over a connection.

Nothing is unpickled: what a peer sends is data, never code.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

Message = dict[str, Any]
MAX_MESSAGE_BYTES = 256 << 20


class Channel:
    """One end of a connection; two threads of its own, so that no caller ever waits for the peer.

    received: called in the reading thread with messages in the order they were sent, all that came
    together at once. closed: called there when the peer is gone. Raises RuntimeError where no
    thread can be started.
    """

    def __init__(
        self,
        connection: Connection,
        received: Callable[[list[Message]], None],
        closed: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._outbox: SimpleQueue[Message | None] = SimpleQueue()
        self._received, self._closed = received, closed
        self._writer = threading.Thread(target=self._write, name="channel-out", daemon=True)
        self._reader = threading.Thread(target=self._read, name="channel-in", daemon=True)
        self._writer.start()
        try:
            self._reader.start()
        except RuntimeError:
            self.finish()
            raise

    def send(self, message: Message) -> None:
        """Never blocks; a message to a peer that is gone is lost."""
        self._outbox.put(message)

    def finish(self) -> None:
        """Returns once all that was sent is written."""
        self._outbox.put(None)
        self._writer.join()

    def _write(self) -> None:
        while (first := self._outbox.get()) is not None:
            messages = [first]
            is_last = False
            while not is_last:
                try:
                    message = self._outbox.get_nowait()
                except Empty:
                    break
                is_last = message is None
                if message is not None:
                    messages.append(message)
            try:
                self._connection.send_bytes(json.dumps(messages).encode())
            except OSError:
                return  # the reader sees it too and says so
            if is_last:
                return

    def _read(self) -> None:
        while True:
            try:
                messages = json.loads(self._connection.recv_bytes(MAX_MESSAGE_BYTES))
            except (EOFError, OSError):
                break
            self._received(messages)
        self._closed()
