"""From prompts to batches: which rows may share one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.batching.cost import CostModel, Costs, PrefillMemory, WorkCounts
from packhorse.batching.expected import expect, sizes_of
from packhorse.batching.planned import LARGEST_BATCH
from packhorse.batching.planner import plan_batches
from packhorse.batching.sizes import Limits, RowSize, batch_tokens
from packhorse.data import Batch, Prompt, SamplingParams
from packhorse.engines.fake import FakeEngine

GREEDY = SamplingParams(max_new_tokens=8)
WARM = SamplingParams(max_new_tokens=8, temperature=0.7, seed=1)


def prompts(*decodings: SamplingParams) -> list[Prompt]:
    return [Prompt(i, (7,) * (i + 1), decoding) for i, decoding in enumerate(decodings)]


def indices(rows: list[Prompt], *, mixed: bool) -> list[list[int]]:
    batches = plan_batches(rows, "fixed", Limits(8, 10_000), mixed_decoding=mixed)
    return [[prompt.index for prompt in batch.prompts] for batch in batches]


def test_an_engine_that_mixes_gets_all_rows_together() -> None:
    assert indices(prompts(GREEDY, WARM, GREEDY), mixed=True) == [[0, 1, 2]]


def test_rows_of_different_decoding_are_kept_apart_where_they_must_be() -> None:
    assert indices(prompts(GREEDY, WARM, GREEDY), mixed=False) == [[0, 2], [1]]


def test_what_changes_no_token_keeps_no_rows_apart() -> None:
    stopped = SamplingParams(max_new_tokens=8, stop=("\n",))
    seeded = SamplingParams(max_new_tokens=8, seed=3)
    short = SamplingParams(max_new_tokens=2)
    assert indices(prompts(GREEDY, stopped, seeded, short), mixed=False) == [[0, 1, 2, 3]]


HEAD = tuple(range(100, 140))


def test_rows_with_a_common_head_are_planned_by_what_is_their_own() -> None:
    rows = [Prompt(i, (*HEAD, *range(i, 2 * i + 3)), GREEDY) for i in range(4)]
    (batch,) = plan_batches(
        rows, "sorted", Limits(8, 10_000), mixed_decoding=True, share_prefixes=True
    )
    assert batch.shared_prefix == len(HEAD)
    assert [prompt.index for prompt in batch.prompts] == [3, 2, 1, 0]
    (batch,) = plan_batches(rows, "sorted", Limits(8, 10_000), mixed_decoding=True)
    assert batch.shared_prefix == 0


def test_different_heads_share_no_batch() -> None:
    other = tuple(range(500, 900))
    rows = [Prompt(i, (*((HEAD, other)[i % 2] * 2)[:400], i, i), GREEDY) for i in range(20)]
    batches = plan_batches(
        rows, "fixed", Limits(99, 10**6), mixed_decoding=True, share_prefixes=True
    )
    for batch in batches:
        prefixes = {prompt.token_ids[: batch.shared_prefix] for prompt in batch.prompts}
        assert len(prefixes) == 1
    assert sorted(prompt.index for batch in batches for prompt in batch.prompts) == list(range(20))


def test_continuous_admits_the_longest_first_whatever_they_share() -> None:
    lengths = [3, 60, 20, 90]
    rows = [
        Prompt(i, (*HEAD, *range(1000 * i, 1000 * i + n)), GREEDY) for i, n in enumerate(lengths)
    ]
    rows.append(Prompt(4, (7,) * 120, GREEDY))
    batches = plan_batches(
        rows, "continuous", Limits(2, 1), mixed_decoding=True, share_prefixes=True
    )
    indices = [[prompt.index for prompt in batch.prompts] for batch in batches]
    assert indices == [[3, 1], [4], [2, 0]]
    assert [batch.shared_prefix for batch in batches] == [len(HEAD), 0, len(HEAD)]


SMOLLM_INT8 = WorkCounts(0.0142, 3.73e-4, 8.3e-7, 0.0125, 6.06e-4, 1.08e-5)
"""Measured on one CTranslate2 worker with a model of 135 million parameters (seconds)."""


@st.composite
def jobs(draw: st.DrawFn) -> list[Prompt]:
    """Rows with some common prefixes, sampling parameters, limits and lengths."""
    heads = draw(st.lists(st.integers(8, 60), min_size=1, max_size=4))
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, len(heads) - 1),
                st.integers(1, 120),
                st.sampled_from([0.0, 0.5, 1.0]),
                st.integers(1, 64),
            ),
            max_size=30,
        )
    )
    return [
        Prompt(
            index,
            (*(1000 * head + place for place in range(heads[head])), *([index] * own)),
            SamplingParams(max_new_tokens=new, temperature=temperature),
        )
        for index, (head, own, temperature, new) in enumerate(rows)
    ]


def job(
    prompts: list[Prompt], policy: str, limits: Limits, window: int, *, mixed: bool
) -> list[Batch]:
    """Return the batches of all windows, planned one after another as in a run."""
    assert limits.costs is not None
    batches: list[Batch] = []
    free: tuple[float, ...] = ()
    for start in range(0, len(prompts), window):
        planned = plan_batches(
            prompts[start : start + window],
            policy,
            limits,
            mixed_decoding=mixed,
            share_prefixes=True,
            free=free,
            more=len(prompts) - start >= window,
        )
        free = expect(planned, limits.costs, FakeEngine().capabilities, free).free
        batches += planned
    return batches


def makespan(batches: list[Batch], costs: Costs) -> float:
    return costs.makespan([costs.batch_seconds(sizes_of(batch)) for batch in batches])


def prefill_bytes(sizes: list[RowSize], costs: Costs) -> float:
    """Count the tokens of all positions computed at once, and their pairs with earlier ones."""
    own = [row.prompt for row in sizes]
    width = min(own) if costs.model.rule == "min-prefix-prefill" else max(own)
    held = sizes[0].shared + width
    token_bytes, pair_bytes = costs.memory
    return len(sizes) * (held * token_bytes + width * held * pair_bytes)


COEFFICIENT = st.floats(0, 1, allow_subnormal=False)
COSTS = st.builds(
    Costs,
    st.builds(
        CostModel,
        st.sampled_from(["padded", "min-prefix-prefill", "packed"]),
        st.integers(1, 4),
        st.one_of(st.just(SMOLLM_INT8), st.builds(WorkCounts, *[COEFFICIENT] * 6)),
    ),
    memory=st.builds(PrefillMemory, st.just(150_000.0), st.sampled_from([0.0, 50.0])),
)


@given(
    jobs(),
    st.builds(
        Limits,
        st.just(8),
        st.integers(1, 3000),
        COSTS,
        st.one_of(st.just(float("inf")), st.floats(1e6, 1e9)),
    ),
    st.integers(1, 31),
    st.booleans(),
)
def test_planned_is_never_costlier_than_sorted_dynamic(
    prompts: list[Prompt], limits: Limits, window: int, mixed: bool
) -> None:
    """Holds for any groups, windows and workers."""
    costs = limits.costs
    assert costs is not None
    batches = job(prompts, "planned", limits, window, mixed=mixed)
    indices = sorted(prompt.index for batch in batches for prompt in batch.prompts)
    assert indices == list(range(len(prompts)))
    for batch in batches:
        assert len(batch.prompts) <= LARGEST_BATCH
        sizes = sizes_of(batch)
        assert len(sizes) == 1 or batch_tokens(sizes) <= limits.max_batch_tokens
        assert len(sizes) == 1 or prefill_bytes(sizes, costs) <= limits.max_batch_bytes * (1 + 1e-9)
    simple = job(prompts, "sorted-dynamic", limits, window, mixed=mixed)
    assert makespan(batches, costs) <= makespan(simple, costs) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("workers", [2, 4])
def test_groups_share_the_workers(workers: int) -> None:
    """Two temperatures, two workers: cutting each group for all workers doubles the batches."""
    rows = [
        Prompt(
            index,
            (index,) * 64,
            SamplingParams(max_new_tokens=64, temperature=float(index % workers)),
        )
        for index in range(8 * workers)
    ]
    limits = Limits(8, 10**6, Costs(CostModel("min-prefix-prefill", workers, SMOLLM_INT8)))
    batches = plan_batches(rows, "planned", limits, mixed_decoding=False)
    assert sorted(len(batch.prompts) for batch in batches) == [8] * workers


def test_a_window_before_others_is_cut_for_least_work() -> None:
    """A single batch leaves a worker idle only if nothing follows."""
    rows = [Prompt(index, (index,) * 64, SamplingParams(max_new_tokens=64)) for index in range(8)]
    limits = Limits(8, 10**6, Costs(CostModel("min-prefix-prefill", 2, SMOLLM_INT8)))
    assert len(plan_batches(rows, "planned", limits, mixed_decoding=True, more=True)) == 1
    assert len(plan_batches(rows, "planned", limits, mixed_decoding=True)) == 2


@pytest.mark.parametrize("policy", ["dynamic", "sorted-dynamic", "planned"])
def test_long_prompts_are_kept_apart_where_memory_is_short(policy: str) -> None:
    """Two prompts of 2,000 tokens: 600 MB of tokens and 400 MB of pairs."""
    rows = [Prompt(index, (index,) * 2000, SamplingParams(max_new_tokens=8)) for index in range(2)]
    model = CostModel("min-prefix-prefill", 1, WorkCounts(1, 0, 0, 0, 0, 0))
    costs = Costs(model, memory=PrefillMemory(150_000, 50))
    for available, batches in ((0.9e9, 2), (1.1e9, 1)):
        limits = Limits(8, 10**6, costs, available)
        assert len(plan_batches(rows, policy, limits, mixed_decoding=True)) == batches


@pytest.mark.parametrize("policy", ["single", "fixed", "sorted-dynamic", "planned"])
@pytest.mark.parametrize(
    ("same_length_above", "separate_above"), [(0, None), (12, None), (None, 12), (None, None)]
)
def test_rows_whose_lengths_do_not_mix_share_no_batch(
    policy: str, same_length_above: int | None, separate_above: int | None
) -> None:
    capabilities = replace(
        FakeEngine().capabilities,
        same_length_above=same_length_above,
        separate_above=separate_above,
    )
    head = tuple(range(100, 110))
    rows = [Prompt(i, (*head, *range(i % 7)), GREEDY) for i in range(40)]
    costs = Costs(CostModel("padded", 1, WorkCounts(0.01, 1e-3, 1e-7, 0.01, 1e-3, 1e-6)))
    batches = plan_batches(
        rows,
        policy,
        Limits(8, 10**6, costs),
        mixed_decoding=True,
        share_prefixes=True,
        length_group=capabilities.length_group,
    )
    assert sorted(p.index for batch in batches for p in batch.prompts) == list(range(40))
    for batch in batches:
        lengths = {len(prompt.token_ids) for prompt in batch.prompts}
        if same_length_above is not None and max(lengths) > same_length_above:
            assert len(lengths) == 1
        if separate_above is not None:
            assert len({length > separate_above for length in lengths}) == 1
        assert len({prompt.token_ids[: batch.shared_prefix] for prompt in batch.prompts}) == 1
    if policy != "single":
        assert any(batch.shared_prefix for batch in batches) or same_length_above == 0
