"""From lengths and measured costs to seconds and memory of a whole job."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from packhorse.batching.cost import OutputLengths
from packhorse.batching.expected import Expected, expect
from packhorse.batching.memory import TokenBudget
from packhorse.batching.planner import plan_batches
from packhorse.batching.policies import PLANNED
from packhorse.calibration import Calibration
from packhorse.config import BatchingConfig
from packhorse.data import Batch, Prompt

PACE_STANDARD_DEVIATION = 0.10
"""Standard deviation of a machine's speed from one minute to the next (share).

Observed on shared machines; part of every interval.
"""
_NORMAL_90 = 1.645


@dataclass(frozen=True, slots=True)
class Setting:
    """Engine, policy and token budget to predict for."""

    calibration: Calibration
    batching: BatchingConfig
    budget: TokenBudget

    def expect(self, prompts: Sequence[Prompt], outputs: OutputLengths) -> Expected:
        """Return the expected cost of a job of these prompts, planned in windows like a run."""
        capabilities = self.calibration.capabilities
        costs = self.calibration.costs(outputs)
        limits = self.budget.limits(self.batching, costs)
        batches: list[Batch] = []
        free: tuple[float, ...] = ()
        rows = self.batching.window_rows
        for start in range(0, len(prompts), rows):
            window = plan_batches(
                prompts[start : start + rows],
                self.batching.policy,
                limits,
                mixed_decoding=capabilities.mixed_decoding,
                share_prefixes=self.batching.share_prefixes and capabilities.shares_prefixes,
                free=free,
                more=len(prompts) - start >= rows,
                length_group=capabilities.length_group,
            )
            if self.batching.policy == PLANNED:
                free = expect(window, costs, capabilities, free).free
            batches += window
        return expect(batches, costs, capabilities)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Prediction of a run with one technique.

    Attributes:
        seconds: Generation time.
        lowest_seconds: Lower bound of its 90 % interval.
        highest_seconds: Upper bound of its 90 % interval.
        load_seconds: Time before generation.
        peak_memory_bytes: Of the process.
        command: Command that runs the job with this technique.
    """

    engine: str
    quantization: str
    batching: str
    seconds: float
    lowest_seconds: float
    highest_seconds: float
    load_seconds: float
    peak_memory_bytes: int
    command: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def relative_error(calibration: Calibration, outputs: OutputLengths, limit: int) -> float:
    """Return the standard deviation of a prediction as a share of it.

    It combines the error of the fit, the standard error of the mean output length, and the
    variation of the machine's speed, taken as independent.
    """
    from_outputs = _mean_error(outputs, limit)
    return math.sqrt(calibration.error**2 + from_outputs**2 + PACE_STANDARD_DEVIATION**2)


def _mean_error(outputs: OutputLengths, limit: int) -> float:
    """Return the relative standard error of the mean output length; 0.5 for fewer than 2 rows."""
    lengths = {
        min(length, limit): rows for length, rows in (outputs.ended + outputs.limited).items()
    }
    rows = sum(lengths.values())
    if rows < 2:
        return 0.5
    mean = sum(length * count for length, count in lengths.items()) / rows
    variance = sum(count * (length - mean) ** 2 for length, count in lengths.items()) / (rows - 1)
    return math.sqrt(variance / rows) / max(mean, 1.0)


def interval(seconds: float, error: float) -> tuple[float, float]:
    """Return the bounds of a log-normal 90 % interval around a prediction."""
    factor = math.exp(_NORMAL_90 * error)
    return seconds / factor, seconds * factor
