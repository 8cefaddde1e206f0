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
"""Standard deviation of a machine's pace from one minute to another (share), as seen on shared
machines; part of every interval."""
_NORMAL_90 = 1.645


@dataclass(frozen=True, slots=True)
class Setting:
    """An engine and a policy to predict for. budget: what it would have."""

    calibration: Calibration
    batching: BatchingConfig
    budget: TokenBudget

    def expect(self, prompts: Sequence[Prompt], outputs: OutputLengths) -> Expected:
        """Of a job of these prompts, planned window by window as a run plans them."""
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
    """What a run would take with one technique.

    seconds: of generation, with the bounds of a 90 % interval. load_seconds: before that.
    peak_memory_bytes: of the process.
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
    """Standard deviation of a prediction as a share of it: the fit's own error, what a few rows can
    tell of the mean length of answers, and the machine's pace, taken as independent."""
    from_outputs = _mean_error(outputs, limit)
    return math.sqrt(calibration.error**2 + from_outputs**2 + PACE_STANDARD_DEVIATION**2)


def _mean_error(outputs: OutputLengths, limit: int) -> float:
    """Standard error of the mean length of answers, as a share of it; 0.5 for fewer than 2 rows."""
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
    """Bounds of a 90 % interval of log-normal shape around a prediction."""
    factor = math.exp(_NORMAL_90 * error)
    return seconds / factor, seconds * factor
