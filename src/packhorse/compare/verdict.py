"""Choose one recommendation from the measured trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from packhorse.compare.document import Recommendation, Trial
from packhorse.evaluation.statistics import knee, pareto_front
from packhorse.evaluation.ties import compare_repeats

ACCURACY = "matched_prefix"
THROUGHPUT = "rows_per_second"


@dataclass(frozen=True, slots=True)
class UserLimits:
    """Limits a trial must keep; None is no limit.

    Attributes:
        max_p95: seconds of latency per row.
        max_ram: peak memory in GB (1e9 bytes).
        min_agreement: mean matched-prefix share with the reference, 0 to 1.
    """

    max_p95: float | None = field(
        default=None, metadata={"metavar": "S", "help": "maximum p95 latency of a row, in seconds"}
    )
    max_ram: float | None = field(
        default=None,
        metadata={"metavar": "GB", "help": "maximum peak memory, in units of 1e9 bytes"},
    )
    min_agreement: float | None = field(
        default=None, metadata={"metavar": "X", "help": "minimum mean matched prefix, from 0 to 1"}
    )

    @property
    def any(self) -> bool:
        return any(limit is not None for limit in (self.max_p95, self.max_ram, self.min_agreement))


def accuracy(trial: Trial) -> float:
    """Return the mean matched-prefix share against the reference, 0 to 1."""
    return trial.quality[ACCURACY].mean


def throughput(trial: Trial) -> float:
    """Return rows per second, median of the repeats."""
    return trial.speed[THROUGHPUT].median


def comparable_trials(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that ended well and have throughput and accuracy."""
    return [
        trial
        for trial in trials
        if trial.status == "ok" and ACCURACY in trial.quality and THROUGHPUT in trial.speed
    ]


def pareto_trials(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that no other beats in both throughput and accuracy."""
    if not trials:
        return []
    chosen = pareto_front([[throughput(trial), accuracy(trial)] for trial in trials])
    return [trials[index] for index in chosen]


def find_knee(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial of a front where more speed starts to cost much accuracy, or None."""
    index = knee([throughput(trial) for trial in trials], [accuracy(trial) for trial in trials])
    return None if index is None else trials[index]


def broken_limits(trial: Trial, limits: UserLimits) -> list[str]:
    """Return the limits a trial breaks, in words."""
    broken = []
    latency = trial.speed.get("latency_p95")
    if limits.max_p95 is not None and (latency is None or latency.median > limits.max_p95):
        found = "unknown" if latency is None else f"{latency.median:.3g} s"
        broken.append(f"p95 latency {found} > {limits.max_p95:g} s")
    memory = trial.speed.get("peak_memory_bytes")
    if limits.max_ram is not None and (memory is None or memory.median > limits.max_ram * 1e9):
        found = "unknown" if memory is None else f"{memory.median / 1e9:.3g} GB"
        broken.append(f"memory {found} > {limits.max_ram:g} GB")
    if limits.min_agreement is not None and accuracy(trial) < limits.min_agreement:
        broken.append(f"agreement {accuracy(trial):.3f} < {limits.min_agreement:g}")
    return broken


def is_tie(left: Trial, right: Trial) -> bool:
    """Whether the difference in throughput is within the noise of the repeats."""
    pairs = (left.speed[THROUGHPUT].values, right.speed[THROUGHPUT].values)
    rounds = min(map(len, pairs))
    return compare_repeats(pairs[0][:rounds], pairs[1][:rounds]).tie


def recommend(trials: Sequence[Trial], limits: UserLimits) -> Recommendation:
    """Return the best trial within the limits; without limits, the knee of the Pareto front.

    Among trials tied in speed, the most accurate is chosen, then the one with the least memory.
    Without limits and without a knee: the fastest of the most accurate trials.
    """
    candidates = comparable_trials(trials)
    if not candidates:
        nothing = "No trial ended well, so there is no recommendation."
        return Recommendation("", nothing, given_up="", ties=(), command="")
    inside = [trial for trial in candidates if not broken_limits(trial, limits)]
    if not inside:
        return _closest_to_limits(candidates, limits)
    if limits.any:
        fastest = max(inside, key=throughput)
        chosen = _most_accurate(
            [trial for trial in inside if trial is fastest or is_tie(trial, fastest)]
        )
        reason = f"{chosen.name} is the fastest within the limits"
    else:
        chosen, reason = _without_limits(inside)
    ties = tuple(t.name for t in inside if t is not chosen and is_tie(t, chosen))
    reason += f": {throughput(chosen):.3g} rows/s at a matched prefix of {accuracy(chosen):.3f}"
    if ties:
        reason += f", tied in speed with {', '.join(ties)}"
    return Recommendation(
        chosen.name, f"{reason}.", _given_up(chosen, candidates), ties, chosen.command
    )


def _without_limits(trials: Sequence[Trial]) -> tuple[Trial, str]:
    bend = find_knee(pareto_trials(trials))
    if bend is not None:
        return bend, f"{bend.name} is the knee of the Pareto front"
    most_accurate = max(map(accuracy, trials))
    equals = [trial for trial in trials if accuracy(trial) == most_accurate]
    fastest = max(equals, key=throughput)
    return fastest, f"{fastest.name} is the fastest of the most accurate trials"


def _most_accurate(trials: Sequence[Trial]) -> Trial:
    def rank(trial: Trial) -> tuple[float, float]:
        memory = trial.speed.get("peak_memory_bytes")
        return accuracy(trial), -(memory.median if memory else 0.0)

    return max(trials, key=rank)


def _given_up(chosen: Trial, trials: Sequence[Trial]) -> str:
    """Return what the fastest and the most accurate trial would have offered, in one sentence."""
    sentences = []
    fastest = max(trials, key=throughput)
    if fastest is not chosen and not is_tie(fastest, chosen):
        ratio = throughput(fastest) / throughput(chosen)
        sentences.append(
            f"{fastest.name} is {ratio:.2f} times as fast, at a matched prefix of "
            f"{accuracy(fastest):.3f}"
        )
    closest = max(trials, key=lambda trial: (accuracy(trial), throughput(trial)))
    if accuracy(closest) > accuracy(chosen):
        sentences.append(
            f"{closest.name} agrees more with the reference ({accuracy(closest):.3f}), at "
            f"{throughput(closest):.3g} rows/s"
        )
    return (
        "; ".join(sentences) + "." if sentences else "Nothing: no trial is faster or more accurate."
    )


def _closest_to_limits(trials: Sequence[Trial], limits: UserLimits) -> Recommendation:
    closest = min(trials, key=lambda trial: (len(broken_limits(trial, limits)), -throughput(trial)))
    return Recommendation(
        trial="",
        reason="No trial is within the limits; the closest is "
        f"{closest.name} ({', '.join(broken_limits(closest, limits))}).",
        given_up="",
        ties=(),
        command=closest.command,
    )
