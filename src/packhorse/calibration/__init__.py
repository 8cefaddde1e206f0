"""What an engine's work costs on this machine: measured once, in seconds, and kept.

calibrate            measure, and choose workers and threads
stored_calibration   what was measured before
"""

from packhorse.calibration.calibrate import calibrate, stored_calibration
from packhorse.calibration.store import Calibration, ThreadTrial

__all__ = ["Calibration", "ThreadTrial", "calibrate", "stored_calibration"]
