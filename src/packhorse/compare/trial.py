"""Run one repeat of a trial: `packhorse run` in a fresh process, measured from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from packhorse.compare.document import Repeat
from packhorse.compare.energy import EnergyMeter
from packhorse.jobs.journal import Journal
from packhorse.jobs.workspace import Workspace
from packhorse.outputs import write_json

POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row of a trial; text and token_ids are None if the row failed."""

    id: str
    text: str | None
    token_ids: tuple[int, ...] | None
    latency: float | None
    first_token: float | None


@dataclass(frozen=True, slots=True)
class RepeatOutcome:
    """The values of one repeat, or the reason why there are none."""

    repeat: Repeat | None
    reason: str = ""
    resolved: dict[str, Any] = field(default_factory=dict)


def run_repeat(
    folder: Path, number: int, command: Sequence[str], environment: dict[str, str] | None = None
) -> RepeatOutcome:
    """Run `command` (a `packhorse run` without output options) once and measure its process.

    Args:
        folder: of this repeat; gets output, journal, stderr and, last, the result, so that an
            interrupted comparison can skip it.

    Returns:
        The outcome; a process that dies gives an outcome with a reason.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    output = folder / "answers.jsonl"
    energy = EnergyMeter()
    started = time.monotonic()
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "-o", str(output), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            peak, usage = _wait_for(process)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    wall = time.monotonic() - started
    if process.returncode not in (0, 3):
        outcome = RepeatOutcome(None, _reason(process.returncode, folder / "stderr"))
    else:
        report = json.loads((folder / "stdout").read_text().splitlines()[-1])
        rows = read_rows(output)
        outcome = RepeatOutcome(
            Repeat(
                number=number,
                wall_seconds=wall,
                peak_memory_bytes=max(peak, report["session"]["peak_memory_bytes"]),
                processor_seconds=usage.ru_utime + usage.ru_stime,
                energy_joules=energy.joules(),
                figures=report["session"],
                latencies=tuple(row.latency for row in rows),
                first_tokens=tuple(row.first_token for row in rows),
            ),
            resolved=report["resolved"],
        )
    write_json(folder / "outcome.json", asdict(outcome))
    return outcome


def finished_repeat(folder: Path) -> RepeatOutcome | None:
    """Return the outcome of an earlier repeat; None if it did not finish."""
    try:
        document = json.loads((folder / "outcome.json").read_text())
    except (OSError, ValueError):
        return None
    repeat = document["repeat"]
    if repeat is not None:
        repeat["latencies"] = tuple(repeat["latencies"])
        repeat["first_tokens"] = tuple(repeat["first_tokens"])
        repeat = Repeat(**repeat)
    return RepeatOutcome(repeat, document["reason"], document["resolved"])


def read_rows(output: Path) -> list[RowResult]:
    """Read the rows of a finished run from its journal, in input order."""
    with Journal(Workspace(output).journal, read_only=True) as journal:
        return [
            RowResult(
                id=str(record.id),
                text=record.text,
                token_ids=record.token_ids,
                latency=record.latency_seconds,
                first_token=record.first_token_seconds,
            )
            for record in journal.records()
        ]


def _wait_for(process: subprocess.Popen[bytes]) -> tuple[int, Any]:
    """Wait for the process and return its peak memory in bytes and its rusage.

    The memory of the process tree is sampled; the process itself reports its own exact peak.
    """
    import psutil

    root = psutil.Process(process.pid)
    peak = 0
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            process.returncode = os.waitstatus_to_exitcode(status)
            return peak, usage
        peak = max(peak, _tree_memory(root))
        time.sleep(POLL_SECONDS)


def _tree_memory(root: Any) -> int:
    import psutil

    total = 0
    try:
        for process in (root, *root.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.Error:
        return total
    return total


def _reason(code: int, stderr: Path) -> str:
    """Return in one line why a trial's process failed."""
    lines = [line.strip() for line in stderr.read_text(errors="replace").splitlines()]
    message = next((line for line in reversed(lines) if line), "no error output")
    message = next((line for line in lines if line.startswith("packhorse: ")), message)
    if code == -signal.SIGKILL:
        return "killed (SIGKILL): most likely the machine ran out of memory"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; last output: {message}"
    return f"exit code {code}: {message.removeprefix('packhorse: ')}"
