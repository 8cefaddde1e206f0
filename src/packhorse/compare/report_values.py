"""Values that all reports of a comparison share: figures, intervals, names, baseline."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.compare.document import Comparison, Effect, Estimate, Spread, Trial
from packhorse.engine_protocol.registry import HUGGINGFACE, default_engine
from packhorse.reports.formats import Format, finite


def median(trial: Trial, name: str) -> float | None:
    """Return the median of a speed metric; None if it was not measured."""
    spread = trial.speed.get(name)
    return finite(spread.median) if spread else None


def mean(trial: Trial, name: str) -> float | None:
    """Return the mean of a quality metric; None if it was not measured."""
    estimate = trial.quality.get(name)
    return finite(estimate.mean) if estimate else None


def bounds(value: Spread | Estimate | None) -> tuple[float, float] | None:
    """Return the interval; None if it has no width (one repeat, one row, equal values)."""
    low, high = (finite(value.low), finite(value.high)) if value else (None, None)
    return None if low is None or high is None or low == high else (low, high)


def interval(value: Spread | Estimate | None, form: Format) -> str:
    """Return the interval as low–high; "" if there is none or both ends read the same."""
    ends = bounds(value)
    low, high = (form(end) for end in ends) if ends else ("", "")
    return f"{low}–{high}" if low != high else ""


def variants(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """Return the (engine, quantization) pairs in order of first appearance; each has one colour."""
    return tuple(dict.fromkeys((trial.engine, trial.quantization) for trial in comparison.trials))


def variant_of(comparison: Comparison, trial: Trial) -> int:
    """Return the index of a trial's engine and quantization in `variants`."""
    return variants(comparison).index((trial.engine, trial.quantization))


def short_name(trial: Trial) -> str:
    """Return the trial's name without engine and quantization."""
    prefix = f"{trial.engine} {trial.quantization} "
    return trial.name.removeprefix(prefix) or trial.batching


def baseline(comparison: Comparison) -> Trial | None:
    """Return the trial that speed-ups are computed against.

    The reference itself if it is among the trials; else float32 `single`, of transformers before
    other engines; else the slowest. None if no trial generated anything.
    """
    timed = [trial for trial in comparison.trials if median(trial, "generate_seconds")]
    singles = [t for t in timed if (t.quantization, t.batching) == ("float32", "single")]
    reference = [t for t in timed if t.name == comparison.reference.get("name")]
    singles.sort(key=lambda trial: trial.engine != default_engine(HUGGINGFACE))
    slowest = sorted(timed, key=lambda trial: -(median(trial, "generate_seconds") or 0.0))
    return next(iter(reference + singles + slowest), None)


def speed_up(comparison: Comparison, trial: Trial) -> float | None:
    """Return median generate seconds of the baseline / of the trial."""
    base = baseline(comparison)
    own = median(trial, "generate_seconds")
    other = median(base, "generate_seconds") if base else None
    return other / own if own and other else None


def marks(comparison: Comparison, trial: Trial) -> str:
    """Return ● on the Pareto front, ◆ its knee, ★ recommended, ≈ tied with the recommended one."""
    found = {
        "●": trial.name in comparison.pareto,
        "◆": trial.name == comparison.knee,
        "★": trial.name == comparison.recommendation.trial,
        "≈": trial.name in comparison.recommendation.ties,
    }
    return "".join(mark for mark, holds in found.items() if holds)


def wasted_share(trial: Trial) -> float | None:
    """Return the share of padding, or of prompt tokens computed one by one."""
    padding = median(trial, "padding_share")
    return median(trial, "token_by_token_prefill_share") if padding is None else padding


@dataclass(frozen=True, slots=True)
class Change:
    """An effect with a readable name.

    Batching: group "ctranslate2 int8", label "single → sorted". Quantization: group "ctranslate2
    float32 → int8", label "sorted".
    """

    group: str
    label: str
    effect: Effect


def changes(comparison: Comparison, kind: str) -> list[Change]:
    """Return the effects of one kind, named by what differs between their two trials."""
    trials = {trial.name: trial for trial in comparison.trials}
    found = []
    for effect in comparison.effects:
        if effect.kind != kind:
            continue
        before, after = trials.get(effect.before), trials.get(effect.after)
        named = Change("", f"{effect.before} → {effect.after}", effect)
        if before and after and before.engine == after.engine:
            if kind == "batching" and before.quantization == after.quantization:
                group = f"{after.engine} {after.quantization}"
                named = Change(group, f"{short_name(before)} → {short_name(after)}", effect)
            elif kind == "quantization" and before.batching == after.batching:
                group = f"{after.engine} {before.quantization} → {after.quantization}"
                named = Change(group, short_name(after), effect)
        found.append(named)
    return found
