"""Measured costs of an engine on this machine: measured once, in seconds, and cached.

calibrate            measure the costs, and choose workers and threads stored_calibration   return
an earlier calibration describe_disturbance message for a calibration that other processes disturbed
"""

from packhorse.calibration.calibrate import calibrate, stored_calibration
from packhorse.calibration.store import (
    Calibration,
    ThreadTrial,
    calibrate_arguments,
    describe_disturbance,
)

__all__ = [
    "Calibration",
    "ThreadTrial",
    "calibrate",
    "calibrate_arguments",
    "describe_disturbance",
    "stored_calibration",
]
