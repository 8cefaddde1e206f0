"""What every report asks of a comparison: figures, intervals, names, the baseline, limits."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.compare.document import Comparison, Effect, Estimate, Spread, Trial
from packhorse.compare.metric_definitions import Measure
from packhorse.engine_protocol.registry import HUGGINGFACE, default_engine
from packhorse.reports.formats import Format, finite, general
from packhorse.reports.words import counted, when


def median(trial: Trial, name: str) -> float | None:
    """Median of a speed figure; None where it was not measured."""
    spread = trial.speed.get(name)
    return finite(spread.median) if spread else None


def mean(trial: Trial, name: str) -> float | None:
    """Mean of a quality figure; None where it was not measured."""
    estimate = trial.quality.get(name)
    return finite(estimate.mean) if estimate else None


def bounds(value: Spread | Estimate | None) -> tuple[float, float] | None:
    """The interval; None where it has no width: one repeat, one row, equal values."""
    low, high = (finite(value.low), finite(value.high)) if value else (None, None)
    return None if low is None or high is None or low == high else (low, high)


def interval(value: Spread | Estimate | None, form: Format) -> str:
    """The interval as low–high in `form`; "" where there is none that can be told apart."""
    ends = bounds(value)
    low, high = (form(end) for end in ends) if ends else ("", "")
    return f"{low}–{high}" if low != high else ""


def measured(comparison: Comparison, measures: tuple[Measure, ...]) -> tuple[Measure, ...]:
    """Those of the measures that at least one trial has a value of."""
    return tuple(
        item
        for item in measures
        if any(
            median(trial, item.name) is not None or mean(trial, item.name) is not None
            for trial in comparison.trials
        )
    )


def variants(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """(engine, quantization) pairs in order of first appearance: what shares a colour."""
    return tuple(dict.fromkeys((trial.engine, trial.quantization) for trial in comparison.trials))


def variant_of(comparison: Comparison, trial: Trial) -> int:
    """The place of its engine and quantization among the `variants`."""
    return variants(comparison).index((trial.engine, trial.quantization))


def short_name(trial: Trial) -> str:
    """The trial's name among those of its engine and quantization."""
    prefix = f"{trial.engine} {trial.quantization} "
    return trial.name.removeprefix(prefix) or trial.batching


def baseline(comparison: Comparison) -> Trial | None:
    """The trial speed-ups are counted from.

    The reference itself when it is among the trials; else float32 `single`, of transformers before
    other engines; else the slowest. None when no trial generated anything.
    """
    timed = [trial for trial in comparison.trials if median(trial, "generate_seconds")]
    singles = [t for t in timed if (t.quantization, t.batching) == ("float32", "single")]
    reference = [t for t in timed if t.name == comparison.reference.get("name")]
    singles.sort(key=lambda trial: trial.engine != default_engine(HUGGINGFACE))
    slowest = sorted(timed, key=lambda trial: -(median(trial, "generate_seconds") or 0.0))
    return next(iter(reference + singles + slowest), None)


def speed_up(trial: Trial, base: Trial | None) -> float | None:
    """Median generate seconds of the baseline / of the trial."""
    own = median(trial, "generate_seconds")
    other = median(base, "generate_seconds") if base else None
    return other / own if own and other else None


def marks(comparison: Comparison, trial: Trial) -> str:
    """● on the Pareto front, ◆ its knee, ★ recommended, ≈ tied with the recommended one."""
    found = {
        "●": trial.name in comparison.pareto,
        "◆": trial.name == comparison.knee,
        "★": trial.name == comparison.recommendation.trial,
        "≈": trial.name in comparison.recommendation.ties,
    }
    return "".join(mark for mark, holds in found.items() if holds)


def waste(trial: Trial) -> float | None:
    """Share of padding, or of prompt tokens forced one by one: what the engine did in vain."""
    padding = median(trial, "padding_share")
    return median(trial, "token_by_token_prefill_share") if padding is None else padding


@dataclass(frozen=True, slots=True)
class Change:
    """An effect for people. Batching: group "ctranslate2 int8", label "single → sorted";
    quantization: group "ctranslate2 float32 → int8", label "sorted"."""

    group: str
    label: str
    effect: Effect


def changes(comparison: Comparison, kind: str) -> list[Change]:
    """The effects of one kind, named by what differs between their two trials."""
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


def recommendation_title(comparison: Comparison) -> str:
    """What to do, in a few words."""
    name = comparison.recommendation.trial
    return f"Use {name}" if name else "No recommendation"


def headline(comparison: Comparison) -> str:
    """Trials, rows, date, machine on one line."""
    repeats = max((len(trial.repeats) for trial in comparison.trials), default=0)
    machine = comparison.machine
    processor = machine.get("processor") or machine.get("platform")
    parts = [
        counted(len(comparison.trials), "trial"),
        counted(repeats, "repeat"),
        counted(int(comparison.sample.get("rows") or 0), "row"),
        str(processor) if processor else "",
        counted(int(machine["cores"]), "core") if machine.get("cores") else "",
        when(comparison.created),
    ]
    return " · ".join(part for part in parts if part)


def limits_line(comparison: Comparison) -> str:
    """The limits given, in words; "" for none."""
    return ", ".join(
        _LIMITS.get(name, f"{name} #").replace("#", general(value))
        for name, value in comparison.limits.items()
        if value is not None
    )


_LIMITS = {
    "max_p95": "p95 latency at most # s",
    "max_ram": "peak memory at most # GB",
    "min_agreement": "matched prefix at least #",
}
