"""Choice of the tokens of a step: rows are preempted and none is lost."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.data import EngineOutput, Prompt, SamplingParams
from packhorse.decoders import Decoder
from packhorse.engines.common.rows import Row
from packhorse.engines.packed.architecture import Architecture
from packhorse.engines.packed.cache import KeyValueCache
from packhorse.engines.packed.scheduler import Scheduler, Sequence, pack
from packhorse.engines.packed.scoring import Scoring
from packhorse.engines.packed.scratch import Step, empty_step
from packhorse.engines.packed.tiles import BLOCK

MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS, CONTEXT = 4, 23, 4 * BLOCK
SMALL = Architecture(
    Decoder(
        family="llama", config=None, layers=1, hidden=16, inner=16, heads=1, kv_heads=1,
        head_size=32, vocabulary=99, epsilon=1e-5, ties_head=True, windows=(0,), rotations=("",),
    ),
    ties_head=True,
)  # fmt: skip
PREFIXES = (tuple(range(1, 20)), tuple(range(1, 35)), (7,) * 9, ())
Ids = tuple[int, ...]
PATHS = Scoring([(1,), (1, 2, 3), (1, 2, 4, 5), (6, 7), (8,) * 9]).paths
NODES = {path[:length] for path in PATHS for length in range(len(path) + 1)}
Chosen = list[tuple[Sequence, int]]


class Simulation:
    """Steps without a network that detect mixed-up rows.

    Each token writes its id where its values would be and checks the ids of all earlier tokens.

    Attributes:
        paths: Continuations that every row scores.
        seen: Nodes whose logits were computed, by row.
    """

    def __init__(self, blocks: int, paths: tuple[Ids, ...] = ()) -> None:
        self.cache = KeyValueCache(SMALL, blocks, quantized=False)
        self.scheduler = Scheduler(
            self.cache, MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS, workers=2, context=CONTEXT
        )
        self.running: list[Chosen] = []
        self.done: list[EngineOutput] = []
        self.paths, self.seen = paths, defaultdict[int, list[Ids]](list)

    def add(self, prompts: list[Prompt], prefixes: list[tuple[int, ...]]) -> None:
        pairs = zip(prompts, prefixes, strict=True)
        self.scheduler.add(
            Sequence(Row(each), prefix, random.Random(0), pending_paths=list(self.paths))
            for each, prefix in pairs
        )

    def start(self) -> bool:
        chosen = self.scheduler.schedule()
        if chosen:
            assert sum(count for _, count in chosen) <= MAX_NUM_BATCHED_TOKENS
            self.running.append(chosen)
        return bool(chosen)

    def finish(self, number: int) -> None:
        chosen, step = self.running.pop(number), empty_step(MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS)
        ending = pack(chosen, step)
        written: Any = self.cache.values[0, :, 0, :, 0]
        for token, position, table in zip(
            step.tokens[: step.num_tokens], step.positions, step.table_rows, strict=False
        ):
            block = self.scheduler.block_tables[table, position // BLOCK]
            written[block, position % BLOCK] = token
        for sequence, count in chosen:
            held = self.scheduler.block_tables[sequence.table_row]
            reached = sequence.num_computed_tokens + count
            found = written[held[: -(-reached // BLOCK)]].ravel()[:reached]
            assert tuple(found) == (*sequence.row.sequence, *sequence.path)[:reached]
        if self.paths:
            self.score_paths(chosen, ending, step)
            return
        for sequence, count in chosen:
            self.scheduler.advance(sequence, count)
        for sequence in ending:
            known = sequence.row.sequence
            if result := sequence.row.take((sum(known) + len(known)) % 97 + 1, (), None):
                self.done.append(result)
                self.scheduler.remove(sequence)

    def fail(self, number: int) -> None:
        """Fail a step of several rows; a row that runs alone would be answered with a failure."""
        chosen = self.running.pop(number)
        assert len(chosen) > 1
        for sequence, _ in reversed(chosen):
            self.scheduler.preempt(sequence, has_failed=True)

    def score_paths(self, chosen: Chosen, ending: list[Sequence], step: Step) -> None:
        assert step.num_logits <= MAX_NUM_SEQS
        ends = step.positions[step.logit_tokens[: step.num_logits]].tolist()
        for sequence, position in zip(ending, ends, strict=True):
            prompt = sequence.row.prompt
            node = sequence.path[: position + 1 - len(prompt.token_ids)]
            self.seen[prompt.index].append(node)
        for sequence, count in chosen:
            self.scheduler.advance(sequence, count)
            if sequence.num_remaining_tokens == 0:
                self.scheduler.remove(sequence)
            elif sequence.pending_paths:
                self.scheduler.fork(sequence)

    def run(self, chance: random.Random, failing: float = 0.0) -> None:
        """Run until all rows are done; `failing` is the share of shared steps that fail."""
        while self.scheduler.waiting or self.scheduler.running:
            wants = len(self.running) < 2 and chance.random() < 0.6
            if not (wants and self.start()):
                assert self.running or self.start(), "nothing goes on"
                number = chance.randrange(len(self.running))
                if len(self.running[number]) > 1 and chance.random() < failing:
                    self.fail(number)
                else:
                    self.finish(number)


def some_rows(
    chance: random.Random, rows: int, most_new: int = CONTEXT
) -> tuple[list[Prompt], list[tuple[int, ...]]]:
    prefixes = [chance.choice(PREFIXES) for _ in range(rows)]
    prompts = []
    for index, prefix in enumerate(prefixes):
        own = tuple(chance.choices(range(1, 90), k=chance.randint(1, 8)))
        new = min(most_new, chance.randint(1, CONTEXT - len(prefix) - len(own)))
        prompts.append(Prompt(index, prefix + own, SamplingParams(max_new_tokens=new)))
    return prompts, prefixes


@pytest.mark.slow
@given(seed=st.integers(0, 10**6), blocks=st.integers(4, 14))
def test_rows_find_their_own_tokens_however_few_blocks_there_are(seed: int, blocks: int) -> None:
    chance, simulation = random.Random(seed), Simulation(blocks)
    simulation.add(*some_rows(chance, 9))
    simulation.run(chance)
    assert sorted(result.index for result in simulation.done) == list(range(9))
    assert all(result.finish_reason == "length" for result in simulation.done)


def test_a_row_is_preempted_when_blocks_run_out_and_continues() -> None:
    simulation = Simulation(blocks=6)
    prompts = [Prompt(i, (1 + i,) * 20, SamplingParams(max_new_tokens=40)) for i in range(2)]
    simulation.add(prompts, [(), ()])
    simulation.run(random.Random(3))
    assert simulation.scheduler.num_preemptions > 0
    assert sorted(len(result.token_ids) for result in simulation.done) == [40, 40]


def test_a_prompt_is_chunked_and_the_next_one_fills_the_step() -> None:
    simulation = Simulation(blocks=12)
    lengths = [30, 5, 9]
    prompts = [Prompt(i, (1,) * n, SamplingParams(max_new_tokens=2)) for i, n in enumerate(lengths)]
    simulation.add(prompts, [(), (), ()])
    steps = []
    while simulation.start():
        steps.append([(each.row.prompt.index, count) for each, count in simulation.running[0]])
        simulation.finish(0)
    assert steps[:2] == [[(0, 23)], [(0, 7), (1, 5), (2, 9)]]


def test_rows_wait_for_the_one_that_computes_their_prefix_and_share_its_blocks() -> None:
    simulation, prefix = Simulation(blocks=14), PREFIXES[1]
    prompts = [Prompt(i, (*prefix, 50 + i), SamplingParams(max_new_tokens=1)) for i in range(3)]
    simulation.add(prompts, [prefix] * 3)
    computed = 0
    while simulation.start():
        computed += sum(count for _, count in simulation.running[0])
        simulation.finish(0)
    whole = len(prefix) // BLOCK * BLOCK
    assert computed == sum(len(prompt.token_ids) for prompt in prompts) - 2 * whole
    assert len(simulation.done) == 3


@pytest.mark.parametrize("rows", [2, 3])
def test_a_failed_step_is_tried_again_row_by_row(rows: int) -> None:
    simulation = Simulation(blocks=12)
    prompts = [Prompt(i, (1,) * 4, SamplingParams(max_new_tokens=1)) for i in range(rows)]
    simulation.add(prompts, [()] * rows)
    simulation.start()
    simulation.fail(0)
    simulation.run(random.Random(0))
    assert sorted(result.index for result in simulation.done) == list(range(rows))


@pytest.mark.slow
@given(
    seed=st.integers(0, 10**6),
    blocks=st.integers(4, 20),
    failing=st.sampled_from([0.3, 1.0]),
    paths=st.sampled_from(["none", "some"]),
)
def test_rows_advance_however_many_steps_fail(
    seed: int, blocks: int, failing: float, paths: str
) -> None:
    """Even if all shared steps fail and prompts are longer than a step."""
    chance = random.Random(seed)
    simulation = Simulation(blocks, () if paths == "none" else PATHS)
    simulation.add(*some_rows(chance, 9, most_new=9 if simulation.paths else CONTEXT))
    simulation.run(chance, failing)
    if simulation.paths:
        assert {row: set(nodes) for row, nodes in simulation.seen.items()} == dict.fromkeys(
            range(9), NODES
        )
    else:
        assert sorted(result.index for result in simulation.done) == list(range(9))
    assert simulation.scheduler.num_free_blocks == blocks


def steps_and_failures(failing: Callable[[int], bool]) -> tuple[int, int]:
    """Return steps and failures of four rows with 59 new tokens each.

    Args:
        failing: Whether a shared step fails, given the number of failures so far.
    """
    simulation, steps, failures = Simulation(blocks=16), 0, 0
    prompts = [Prompt(i, (1,) * 4, SamplingParams(max_new_tokens=59)) for i in range(4)]
    simulation.add(prompts, [()] * 4)
    while simulation.start():
        steps += 1
        if len(simulation.running[0]) > 1 and failing(failures):
            failures += 1
            simulation.fail(0)
        else:
            simulation.finish(0)
    assert len(simulation.done) == 4
    return steps, failures


def test_rows_share_steps_again_once_each_got_further_alone() -> None:
    usual, _ = steps_and_failures(lambda _: False)
    after_one, failures = steps_and_failures(lambda before: before == 0)
    assert failures == 1
    assert usual < after_one <= usual + 5
    assert usual < 0.8 * 4 * 59, "rows share steps at all"


def test_rows_stay_alone_for_longer_where_all_steps_of_several_fail() -> None:
    """Each failed step costs the keys and values of its rows."""
    _, failures = steps_and_failures(lambda _: True)
    assert 2 <= failures <= 4 * 6 / 2


def test_rows_of_a_failed_step_do_not_wait_for_steady_traffic_to_end() -> None:
    """Other rows always decode and are replaced as they finish."""
    simulation = Simulation(blocks=16)

    def newcomer(index: int) -> None:
        simulation.add([Prompt(index, (1,) * 4, SamplingParams(max_new_tokens=3))], [()])

    for index in range(2):
        newcomer(index)
    simulation.start()
    simulation.fail(0)
    for index in range(2, 9):
        newcomer(index)
    for index in range(9, 40):
        assert simulation.start()
        simulation.finish(0)
        newcomer(index)
        if {0, 1} <= {result.index for result in simulation.done}:
            break
    assert index < 25
    assert any(result.index > 1 for result in simulation.done), "nor do others wait for them"


@given(seed=st.integers(0, 10**6), blocks=st.integers(4, 30))
def test_rows_that_are_scored_see_each_beginning_of_a_path(seed: int, blocks: int) -> None:
    """Paths exceed the logits of a step, forks and prefixes share blocks, rows are preempted."""
    chance, simulation = random.Random(seed), Simulation(blocks, PATHS)
    prompts, prefixes = some_rows(chance, 9, most_new=9)
    simulation.add(prompts, prefixes)
    simulation.run(chance)
    assert {row: set(nodes) for row, nodes in simulation.seen.items()} == dict.fromkeys(
        range(9), NODES
    )
    assert simulation.scheduler.num_free_blocks == blocks


def test_a_row_alone_computes_its_paths_side_by_side_on_both_workers() -> None:
    simulation = Simulation(blocks=30, paths=((1,), (2,), (3,)))
    simulation.add([Prompt(0, (9,) * 20, SamplingParams(max_new_tokens=2))], [()])
    steps = []
    while simulation.start():
        while simulation.start():
            pass
        steps.append([[count for _, count in chosen] for chosen in simulation.running])
        while simulation.running:
            simulation.finish(0)
    assert steps == [[[20]], [[1, 1], [1]]]


def test_a_path_computes_only_what_is_new_after_the_one_before() -> None:
    simulation = Simulation(blocks=30, paths=((1, 2, 3), (1, 2, 4), (5,)))
    simulation.add(
        [Prompt(i, (9,) * 5, SamplingParams(max_new_tokens=4)) for i in range(7)], [()] * 7
    )
    simulation.run(random.Random(0))
    assert simulation.seen[0] == [(), (1,), (1, 2), (1, 2, 3), (1, 2, 4), (5,)]
