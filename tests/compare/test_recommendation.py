"""Recommendations as a table: trials with planted figures, limits, and what must come out."""

from __future__ import annotations

import pytest

from packhorse.compare.document import Estimate, Spread, Trial
from packhorse.compare.verdict import UserLimits, find_knee, is_tie, pareto_trials, recommend


def trial(
    name: str, rates: tuple[float, ...], accuracy: float, p95: float = 1.0, gigabytes: float = 1.0
) -> Trial:
    def spread(*values: float) -> Spread:
        return Spread(sorted(values)[len(values) // 2], min(values), max(values), values)

    return Trial(
        name=name, engine="e", quantization="q", batching="b", status="ok", reason="",
        compute_type="float32", threads="1 x 2", repeats=(),
        speed={
            "rows_per_second": spread(*rates),
            "latency_p95": spread(p95),
            "peak_memory_bytes": spread(gigabytes * 1e9),
        },
        quality={"matched_prefix": Estimate(accuracy, accuracy, accuracy)},
        quality_notes={}, worst_rows=(), flags=(), command=f"packhorse run {name}",
    )  # fmt: skip


def failed(name: str) -> Trial:
    base = trial(name, (1.0,), 1.0)
    return Trial(
        **{
            **{field: getattr(base, field) for field in Trial.__slots__},
            "status": "failed",
            "reason": "died",
        }
    )


SLOW = trial("slow", (1.0, 1.01, 0.99), 1.0, p95=5.0)
TRUE = trial("true", (2.0, 2.02, 1.98), 1.0, gigabytes=3.0)
FAST = trial("fast", (8.0, 8.1, 7.9), 0.3)
BEND = trial("bend", (6.0, 6.05, 5.95), 0.9)
POOR = trial("poor", (5.0, 5.05, 4.95), 0.2)


def test_front_and_knee() -> None:
    ranked = pareto_trials([SLOW, TRUE, FAST, BEND, POOR])
    assert [t.name for t in ranked] == ["true", "fast", "bend"]
    bend = find_knee(ranked)
    assert bend is not None
    assert bend.name == "bend"


@pytest.mark.parametrize(
    ("limits", "chosen"),
    [
        (UserLimits(), "bend"),
        (UserLimits(min_agreement=0.95), "true"),
        (UserLimits(min_agreement=0.95, max_ram=2.0), "slow"),
        (UserLimits(max_p95=2.0), "fast"),
        (UserLimits(min_agreement=0.5), "bend"),
        (UserLimits(min_agreement=0.95, max_ram=2.0, max_p95=2.0), ""),
    ],
)
def test_recommendation(limits: UserLimits, chosen: str) -> None:
    recommendation = recommend([SLOW, TRUE, FAST, BEND, POOR], limits)
    assert recommendation.trial == chosen
    assert recommendation.reason.endswith(".")
    if chosen:
        assert recommendation.command == f"packhorse run {chosen}"
    else:
        assert "No trial is within the limits" in recommendation.reason


def test_what_is_given_up_is_said() -> None:
    said = recommend([TRUE, FAST, BEND], UserLimits()).given_up
    assert "fast is 1.33 times as fast, at a matched prefix of 0.300" in said
    assert "true agrees more with the reference (1.000)" in said
    assert (
        recommend([TRUE], UserLimits()).given_up == "Nothing: no trial is faster or more accurate."
    )


def test_a_difference_inside_the_noise_is_a_tie_and_accuracy_decides() -> None:
    noisy = trial("noisy", (6.2, 5.6, 6.3), 0.2)
    assert is_tie(noisy, BEND)
    assert not is_tie(BEND, TRUE)
    recommendation = recommend([noisy, BEND], UserLimits(max_p95=2.0))
    assert recommendation.trial == "bend"
    assert recommendation.ties == ("noisy",)
    assert "tied in speed with noisy" in recommendation.reason


def test_failed_trials_are_never_recommended() -> None:
    assert recommend([failed("a"), SLOW], UserLimits()).trial == "slow"
    assert recommend([failed("a")], UserLimits()).trial == ""
