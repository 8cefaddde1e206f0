"""Run the command line in forked children whose standard streams are in a chosen state.

    python forked_cli.py

reads one JSON request per line from standard input ({"arguments", "folder", "states", "log"}) and
answers each with the exit code of one child. Modules are imported once, in the parent: a child
costs milliseconds, where a new process costs seconds.

States of a stream: open (the null device for input, the log for output), closed, broken (the
reader of a pipe has left; for input, a descriptor that cannot be read) and full (/dev/full).
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def set_stream(number: int, state: str, log: str) -> None:
    if state == "closed":
        os.close(number)
        return
    if state == "full":
        opened = os.open("/dev/full", os.O_RDWR)
    elif number == 0:
        opened = os.open(os.devnull, os.O_WRONLY if state == "broken" else os.O_RDONLY)
    elif state == "broken":
        reader, opened = os.pipe()
        os.close(reader)
    else:
        opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(opened, number)
    os.close(opened)


def reopen(number: int, state: str) -> Any:
    """Return what the interpreter has for a standard stream when it starts."""
    if state == "closed":
        return None
    mode = "w" if number else "r"
    return os.fdopen(number, mode, 1 if number == 2 else -1, "utf-8", closefd=False)


def run_child(request: dict[str, Any]) -> int:
    from packhorse.cli import main

    for number, state in enumerate(request["states"]):
        set_stream(number, state, request["log"])
    os.chdir(request["folder"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = reopen(number, request["states"][number])
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    return main(request["arguments"])


def serve_requests() -> None:
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in requests:
        request = json.loads(line)
        for module in request["modules"]:
            __import__(module)
        child = os.fork()
        if child == 0:
            os.closerange(3, 64)
            sys.exit(run_child(request))  # the interpreter ends as it does for a user
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


if __name__ == "__main__":
    serve_requests()
