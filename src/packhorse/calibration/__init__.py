"""What an engine's work costs on this machine: measured once, in seconds, and kept.

calibrate            measure, and choose workers and threads
stored_calibration   what was measured before
disturbance          what to say of one that other work disturbed
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
