from __future__ import annotations

from packhorse.batching.planning import plan
from packhorse.batching.policies import Limits
from packhorse.data import Decoding, Prompt

GREEDY = Decoding(max_new_tokens=8)
WARM = Decoding(max_new_tokens=8, temperature=0.7, seed=1)


def prompts(*decodings: Decoding) -> list[Prompt]:
    return [Prompt(i, (7,) * (i + 1), decoding) for i, decoding in enumerate(decodings)]


def indices(rows: list[Prompt], *, mixed: bool) -> list[list[int]]:
    batches = plan(rows, "fixed", Limits(8, 10_000), mixed_decoding=mixed)
    return [[prompt.index for prompt in batch.prompts] for batch in batches]


def test_an_engine_that_mixes_gets_all_rows_together() -> None:
    assert indices(prompts(GREEDY, WARM, GREEDY), mixed=True) == [[0, 1, 2]]


def test_rows_of_different_decoding_are_kept_apart_where_they_must_be() -> None:
    assert indices(prompts(GREEDY, WARM, GREEDY), mixed=False) == [[0, 2], [1]]


def test_what_changes_no_token_keeps_no_rows_apart() -> None:
    stopped = Decoding(max_new_tokens=8, stop=("\n",))
    seeded = Decoding(max_new_tokens=8, seed=3)
    short = Decoding(max_new_tokens=2)
    assert indices(prompts(GREEDY, stopped, seeded, short), mixed=False) == [[0, 1, 2, 3]]


HEAD = tuple(range(100, 140))


def test_rows_with_a_common_head_are_planned_by_what_is_their_own() -> None:
    rows = [Prompt(i, (*HEAD, *range(i, 2 * i + 3)), GREEDY) for i in range(4)]
    (batch,) = plan(rows, "sorted", Limits(8, 10_000), mixed_decoding=True, share_prefixes=True)
    assert batch.shared_prefix == len(HEAD)
    assert [prompt.index for prompt in batch.prompts] == [3, 2, 1, 0]
    (batch,) = plan(rows, "sorted", Limits(8, 10_000), mixed_decoding=True)
    assert batch.shared_prefix == 0


def test_different_heads_share_no_batch() -> None:
    other = tuple(range(500, 900))
    rows = [Prompt(i, (*((HEAD, other)[i % 2] * 2)[:400], i, i), GREEDY) for i in range(20)]
    batches = plan(rows, "fixed", Limits(99, 10**6), mixed_decoding=True, share_prefixes=True)
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
    batches = plan(rows, "continuous", Limits(2, 1), mixed_decoding=True, share_prefixes=True)
    indices = [[prompt.index for prompt in batch.prompts] for batch in batches]
    assert indices == [[3, 1], [4], [2, 0]]
    assert [batch.shared_prefix for batch in batches] == [len(HEAD), 0, len(HEAD)]
