"""The policy `planned`: optimal on small inputs, and its invariants on all."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.batching.cost import CostModel, Costs, OutputLengths, WorkCounts
from packhorse.batching.planned import LARGEST_BATCH, best_plan
from packhorse.batching.policies import POLICIES, sorted_dynamic
from packhorse.batching.sizes import Limits, RowSize, batch_tokens
from packhorse.engine_protocol import CostRule
from packhorse.errors import ConfigError

COEFFICIENT = st.floats(0, 1, allow_subnormal=False)
COSTS = st.builds(
    Costs,
    st.builds(
        CostModel,
        st.sampled_from(["padded", "min-prefix-prefill", "packed"]),
        st.integers(1, 4),
        st.builds(WorkCounts, *[COEFFICIENT] * 6),
    ),
)
ROWS = st.lists(st.builds(RowSize, st.integers(1, 300), st.integers(1, 100)), max_size=40)


def costs(rule: CostRule, workers: int, **seconds: float) -> Costs:
    nothing = dict.fromkeys(WorkCounts._fields, 0.0)
    return Costs(CostModel(rule, workers, WorkCounts(**{**nothing, **seconds})))


@given(ROWS, st.integers(1, 3000), COSTS)
def test_laws(sizes: list[RowSize], tokens: int, costs: Costs) -> None:
    limits = Limits(8, tokens, costs)
    plan = best_plan([sizes], limits, costs)
    batches = [batch for _, batch in plan.batches]
    assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
    for batch in batches:
        assert 1 <= len(batch) <= LARGEST_BATCH
        assert len(batch) == 1 or batch_tokens([sizes[index] for index in batch]) <= tokens
    simple = sorted_dynamic(sizes, limits)
    seconds = [costs.batch_seconds([sizes[index] for index in batch]) for batch in simple]
    assert plan.seconds <= costs.makespan(seconds) * (1 + 1e-9)


@given(st.lists(st.builds(RowSize, st.integers(1, 300), st.just(9)), min_size=1, max_size=7), COSTS)
def test_no_way_of_cutting_costs_less_on_one_worker(sizes: list[RowSize], costs: Costs) -> None:
    model = CostModel(costs.model.rule, 1, costs.model.coefficients)
    alone = Costs(model)
    ordered = sorted(sizes, key=lambda row: -row.prompt)
    best = min(
        sum(alone.batch_seconds(ordered[start:stop]) for start, stop in pairwise(bounds))
        for choice in product([False, True], repeat=len(sizes) - 1)
        for bounds in [[0, *(i + 1 for i, cut in enumerate(choice) if cut), len(sizes)]]
    )
    found = best_plan([sizes], Limits(8, 10**9), alone)
    assert found.seconds == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_forced_steps_are_avoided_and_padding_is_not() -> None:
    """100 and 98 tokens share a batch on either engine; 10 tokens join only if padding is cheap."""
    sizes = [RowSize(length, 4) for length in (10, 100, 98)]
    forced = costs("min-prefix-prefill", 1, batches=1, steps=0.1)
    assert POLICIES["planned"](sizes, Limits(8, 10**6, forced)) == [[1, 2], [0]]
    padded = costs("padded", 1, batches=1, prefill_tokens=0.001)
    assert POLICIES["planned"](sizes, Limits(8, 10**6, padded)) == [[1, 2, 0]]


def test_work_is_shared_out_among_workers() -> None:
    """One batch is cheapest in total; one batch per worker finishes first."""
    sizes = [RowSize(50, 4)] * 8
    two = costs("padded", 2, batches=0.5, prefill_tokens=0.01)
    batches = POLICIES["planned"](sizes, Limits(8, 10**6, two))
    assert [len(batch) for batch in batches] == [4, 4]


def test_costliest_batches_go_first() -> None:
    sizes = [RowSize(length, 4) for length in (5, 400, 60)]
    plan = best_plan([sizes], Limits(1, 1), costs("padded", 2, prefill_tokens=0.01))
    assert [batch for _, batch in plan.batches] == [(1,), (2,), (0,)]


def test_what_rows_wrote_so_far_changes_the_plan() -> None:
    """Rows with short outputs justify larger batches less than rows with long outputs."""
    sizes = [RowSize(length, 500) for length in (40, 30)]
    model = costs("min-prefix-prefill", 1, batches=0.1, steps=0.05).model
    short, long = OutputLengths(), OutputLengths()
    for _ in range(100):
        short.observe(1, reached_limit=False)
        long.observe(400, reached_limit=False)
    for outputs, batches in ((short, 2), (long, 1)):
        plan = best_plan([sizes], Limits(8, 10**6), Costs(model, outputs))
        assert len(plan.batches) == batches


def test_without_costs_it_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="measured costs") as caught:
        POLICIES["planned"]([RowSize(1, 1)], Limits(8, 100))
    assert "packhorse calibrate" in caught.value.hint
