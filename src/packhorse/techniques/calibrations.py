"""Calibration before anything is timed or predicted."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable

from packhorse.calibration import Calibration, calibrate_arguments, stored_calibration
from packhorse.config import EngineConfig
from packhorse.errors import InputError
from packhorse.models import PreparedModel
from packhorse.techniques.grid import packhorse_command


def calibrated_in_child_process(
    model: str,
    prepared: PreparedModel,
    engine: EngineConfig,
    report: Callable[[str], None],
    allow_pickle: bool = False,
) -> Calibration:
    """Calibrate in a child process, so that memory is measured as in a run.

    Raises:
        InputError: the child process failed; the message is its error.
    """
    report(f"measuring the cost of {model} on {engine.engine} {engine.quantization} (once)")
    command = calibrate_arguments(model, engine, allow_pickle=allow_pickle)
    ended = subprocess.run(
        packhorse_command([*command, "--json"]), capture_output=True, text=True, check=False
    )
    if ended.returncode == 0:
        return Calibration.from_json(json.loads(ended.stdout.splitlines()[-1]))
    found = stored_calibration(prepared, engine)
    if found is None:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith("packhorse: ")), "it ended early")
        hint = f"try: {shlex.join(['packhorse', *command])}"
        raise InputError(said.removeprefix("packhorse: "), hint)
    return found
