"""Drawing the next token: the rule, computed again in plain Python, and its consequences."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.data import SamplingParams
from packhorse.engines.common import sampling
from packhorse.engines.common.sampling import choose_tokens, row_generator, sample

LOGITS = [1.0, 3.0, 2.0, 0.0, -1.0]
P = [0.086, 0.636, 0.234, 0.032, 0.012]  # softmax of LOGITS, about


def draw(logits: list[float], uniform: float, **options: float) -> int:
    chosen = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options}
    (token,) = sample(
        torch.tensor([logits]),
        temperature=[chosen["temperature"]],
        top_k=[int(chosen["top_k"])],
        top_p=[chosen["top_p"]],
        uniform=[uniform],
    ).tolist()
    return int(token)


def by_hand(logits: list[float], uniform: float, temperature: float, k: int, p: float) -> int:
    """The rule of the module, one row, in plain Python."""
    top = max(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda token: -weights[token])[: k or None]
    total = sum(weights[token] for token in order)
    kept, reached = set(), 0.0
    for token in order:
        if reached < p or p == 1:  # 1 keeps every token, however improbable
            kept.add(token)
        reached += weights[token] / total
    target = uniform * sum(weights[token] for token in kept)
    reached = 0.0
    for token in sorted(kept):
        reached += weights[token]
        if reached > target:
            return token
    return max(kept)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-64, 64).map(lambda eighths: eighths / 8), min_size=1, max_size=40),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.integers(0, 45),
    st.sampled_from([0.05, 0.5, 0.9, 1.0]),
)
def test_the_rule(
    logits: list[float], uniform: float, temperature: float, top_k: int, top_p: float
) -> None:
    near = (max(0.0, uniform - 1e-9), uniform, min(1 - 2**-53, uniform + 1e-9))
    allowed = {by_hand(logits, number, temperature, top_k, top_p) for number in near}
    assert draw(logits, uniform, temperature=temperature, top_k=top_k, top_p=top_p) in allowed


@pytest.mark.parametrize(
    ("uniform", "options", "token"),
    [
        (0.0, {}, 0),
        (P[0] - 0.01, {}, 0),
        (P[0] + 0.01, {}, 1),
        (P[0] + P[1] + 0.01, {}, 2),
        (1 - 2**-53, {}, 4),
        (0.0, {"top_k": 2}, 1),
        (1 - 2**-53, {"top_k": 2}, 2),
        (0.0, {"top_p": 0.6}, 1),
        (1 - 2**-53, {"top_p": 0.6}, 1),
        (1 - 2**-53, {"top_p": 0.7}, 2),
        (1 - 2**-53, {"top_k": 3, "top_p": 0.1}, 1),
        (1 - 2**-53, {"top_p": 1e-9}, 1),
        (0.99, {"temperature": 1e-300}, 1),
        (0.3, {"temperature": 1e9}, 1),
    ],
)
def test_by_example(uniform: float, options: dict[str, float], token: int) -> None:
    assert draw(LOGITS, uniform, **options) == token


def test_masked_logits_are_never_drawn() -> None:
    logits = [-math.inf, 0.0, -math.inf, 0.0, -math.inf]
    assert {draw(logits, step / 50) for step in range(50)} == {1, 3}
    assert {draw(logits, step / 50, top_k=4, top_p=0.99) for step in range(50)} == {1, 3}


def test_frequencies_are_the_probabilities() -> None:
    count = 20_000
    decoding = SamplingParams(temperature=1.0)
    chance = random.Random(3)
    tokens = choose_tokens(
        torch.tensor([LOGITS]).expand(count, -1), [decoding] * count, [chance] * count
    )
    found = Counter(tokens)
    expected = torch.tensor(LOGITS).softmax(0).tolist()
    for token, share in enumerate(expected):
        deviation = math.sqrt(share * (1 - share) / count)
        assert abs(found[token] / count - share) < 4.5 * deviation


def test_a_nucleus_wider_than_the_sorted_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((6, 500), generator=generator)
    options: dict[str, Any] = {
        "temperature": [1.0] * 6,
        "top_k": [0, 0, 3, 0, 400, 0],
        "top_p": [0.1, 0.99, 0.5, 0.7, 0.95, 1.0],
        "uniform": [0.05, 0.3, 0.5, 0.7, 0.9, 0.99],
    }
    expected = sample(logits, **options).tolist()
    monkeypatch.setattr(sampling, "FIRST_CANDIDATES", 8)
    assert sample(logits, **options).tolist() == expected


def test_rows_do_not_depend_on_each_other() -> None:
    logits = torch.randn((12, 300), generator=torch.Generator().manual_seed(1))
    decodings = [
        SamplingParams(temperature=0.0 if row % 3 == 0 else 0.9, top_p=0.8, top_k=row, seed=row)
        for row in range(12)
    ]
    together = choose_tokens(logits, decodings, [row_generator(d) for d in decodings])
    alone = [
        choose_tokens(logits[row : row + 1], [decoding], [row_generator(decoding)])[0]
        for row, decoding in enumerate(decodings)
    ]
    assert together == alone


def test_only_sampling_rows_draw() -> None:
    decodings = [SamplingParams(seed=1), SamplingParams(temperature=1.0, top_k=1, seed=1)]
    generators = [row_generator(decoding) for decoding in decodings]
    choose_tokens(torch.tensor([LOGITS, LOGITS]), decodings, generators)
    assert generators[0].random() == generators[1].random() == random.Random(1).random()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(bad: float, temperature: float) -> None:
    rows = torch.tensor([LOGITS, [0.0, bad, 0.0, 0.0, 0.0], [-math.inf] * 5, LOGITS])
    decodings = [SamplingParams(temperature=temperature, top_p=0.01, seed=0)] * 4
    chosen = choose_tokens(rows, decodings, [row_generator(d) for d in decodings])
    assert chosen == [1, None, None, 1]


def test_equal_logits_are_greedily_the_first() -> None:
    rows = torch.tensor([[0.0, 2.0, 2.0, 1.0]], dtype=torch.bfloat16)
    for decoding in (SamplingParams(), SamplingParams(temperature=1.0, top_k=1)):
        assert choose_tokens(rows, [decoding], [row_generator(decoding)]) == [1]
