"""Render chats in a separate process that the kernel ends at a limit (see `renderer.py`)."""

from __future__ import annotations

import atexit
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from packhorse.errors import ModelError, first_line

SECONDS_PER_CHAT = 2.0
"""Processor seconds allowed per chat, however short it is."""
_SECONDS_PER_MEGABYTE = 1.0
_ROWS_PER_FRAME = 256
_BYTES_PER_FRAME = 4 << 20
_MAX_CHARACTERS = 300
_SCRIPT = Path(__file__).with_name("renderer.py")


@dataclass(frozen=True, slots=True)
class RenderError:
    """Why a template returned no text for a chat.

    Attributes:
        message: The reason.
        kind: "limit" if it took too much time or memory; "died" if its process was ended from
            outside; "syntax" if it is not a Jinja template; "" if it refuses the chat.
    """

    message: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """A chat template, and its variables besides the messages (names of special tokens)."""

    text: str
    variables: Mapping[str, Any]


class RenderingProcess:
    """A process that renders chats of all models; started at the first chat.

    A chat that reaches a limit ends that process; other chats are rendered by the next one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def render(
        self,
        template: TemplateSource,
        chats: Sequence[Mapping[str, Any] | None],
        now: datetime,
    ) -> list[str | RenderError]:
        """Return the text of each chat, or why there is none.

        Args:
            template: The chat template.
            chats: Variables of each chat: `messages` and others. None returns the names of the
                variables that the template reads, as a list in JSON.
            now: Local time for `strftime_now`.

        Raises:
            ModelError: If the process cannot be started.
        """
        encoded = [json.dumps(chat, default=_placeholder).encode() for chat in chats]
        found: list[str | RenderError] = []
        with self._lock:
            try:
                while len(found) < len(chats):
                    part = _frame_of(encoded, len(found))
                    found += self._rendered(template, part, now)
            except BaseException:
                self._end()  # replies that are still to come belong to no later chat
                raise
        return found

    def _rendered(
        self, template: TemplateSource, chats: Sequence[bytes], now: datetime
    ) -> list[str | RenderError]:
        """Return the results of `chats` up to the first that ends the process."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        seconds = SECONDS_PER_CHAT + _SECONDS_PER_MEGABYTE * max(map(len, chats)) / 1e6
        settings = {
            "source": template.text,
            "variables": template.variables,
            "now": now.isoformat(),
            "seconds": seconds,
        }
        head = json.dumps(settings, default=_placeholder).encode()
        frame = head[:-1] + b', "chats": [' + b", ".join(chats) + b"]}"
        results: list[str | RenderError] = []
        try:
            process.stdin.write(struct.pack(">I", len(frame)) + frame)
            process.stdin.flush()
            for _ in chats:
                header = process.stdout.read(4)
                if len(header) < 4:
                    break
                results.append(_result(json.loads(process.stdout.read(_length(header)))))
        except BrokenPipeError:
            pass
        if len(results) < len(chats):
            results.append(self._exit_error(seconds))
        return results

    def _started(self) -> subprocess.Popen[bytes]:
        is_ours = self._process is not None and self._owner == os.getpid()
        if self._process is not None:
            if is_ours and self._process.poll() is None:
                return self._process
            _close(self._process)
        if self._owner != os.getpid():
            atexit.register(self._end)
        self._owner = os.getpid()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_SCRIPT), json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the parent process
            )
        except OSError as error:
            raise ModelError(
                f"the process that renders chat templates cannot start: {first_line(error)}",
                "free memory, or raise the limits of open files and processes",
            ) from error
        return self._process

    def _exit_error(self, seconds: float) -> RenderError:
        """Return why the process has ended."""
        process, self._process = self._process, None
        assert process is not None
        _close(process)
        code = process.wait()
        if code == -signal.SIGPROF:
            message = f"it takes more than {seconds:.1f} seconds of processor time for this row"
            return RenderError(message, kind="limit")
        return RenderError(f"the process that renders it ended with code {code}", kind="died")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            _close(process)
            process.wait()


@cache
def rendering_process() -> RenderingProcess:
    """Return the one rendering process of this process."""
    return RenderingProcess()


def _frame_of(encoded: Sequence[bytes], start: int) -> Sequence[bytes]:
    """Return the chats from `start` on that are sent together; at least one."""
    size, end = 0, start
    while end < len(encoded) and end - start < _ROWS_PER_FRAME:
        size += len(encoded[end])
        if size > _BYTES_PER_FRAME and end > start:
            break
        end += 1
    return encoded[start:end]


def _result(reply: Mapping[str, Any]) -> str | RenderError:
    if "text" in reply:
        return str(reply["text"])
    line = (reply["error"].strip().splitlines() or ["it raises an error without a message"])[0]
    text = "".join(each if each.isprintable() else " " for each in line)
    return RenderError(
        text[:_MAX_CHARACTERS] + "..." * (len(text) > _MAX_CHARACTERS),
        kind=reply["kind"],
    )


def _length(header: bytes) -> int:
    return int(struct.unpack(">I", header)[0])


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:
                continue


def _placeholder(value: Any) -> str:
    """Return a placeholder for a value without a JSON form, which only a Python caller can give."""
    return f"<{type(value).__name__}>"
