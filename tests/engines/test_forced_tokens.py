"""A limit of reasoning: the model's own tokens up to it, then the end tag, then its own again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import packhorse
from packhorse import Completion, EngineConfig, Failure, PromptOptions
from packhorse.data import ReasoningTokens
from tiny_models import ENDOFTEXT, IM_START, tiny_llama

TAGS = (IM_START, ENDOFTEXT)
"""Special tokens of the tiny model stand in for the tags of reasoning; ids 1 and 0."""
PROMPTS = [f"{text}{IM_START}" for text in ("What is the capital?", "Who wrote", "a b c d e f")]
NEW = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module", params=["transformers", "packed", "ctranslate2"])
def model(request: pytest.FixtureRequest, folder: Path) -> Iterator[packhorse.Model]:
    with packhorse.load(str(folder), engine=EngineConfig(engine=request.param)) as loaded:
        yield loaded


def generate(model: packhorse.Model, prompts: Any, thinking: Any, **decoding: Any) -> list[Any]:
    options = PromptOptions(thinking=thinking, thinking_tags=TAGS, raw_prompts=True)
    found = model.generate(prompts, options=options, **{"max_new_tokens": NEW, **decoding})
    return sorted(found, key=lambda outcome: outcome.index)


@pytest.mark.parametrize("decoding", [{}, {"temperature": 1.0, "seed": 3}, {"top_log_probs": 2}])
@pytest.mark.parametrize("limit", [0, 1, 7])
def test_the_end_tag_is_forced(model: packhorse.Model, limit: int, decoding: Any) -> None:
    limited = generate(model, PROMPTS, limit, **decoding)
    if not model.capabilities.forces_tokens:
        assert {each.code for each in limited} == {"unsupported_option"}
        assert "use transformers or packed" in limited[0].message
        return
    free = generate(model, PROMPTS, "auto", **decoding)
    for prompt, ours, theirs in zip(PROMPTS, limited, free, strict=True):
        assert isinstance(ours, Completion)
        if 0 in theirs.token_ids[:limit]:
            assert ours.token_ids == theirs.token_ids  # it ended by itself
            continue
        if len(theirs.token_ids) < limit:
            continue
        assert ours.token_ids[: limit + 1] == (*theirs.token_ids[:limit], 0)
        assert ours.reasoning_tokens == limit + 1
        if "temperature" in decoding:
            continue
        ids = [*model.codec.encode_rendered([prompt])[0], *ours.token_ids[: limit + 1]]
        (after,) = generate(model, [ids], "auto", max_new_tokens=NEW - limit - 1)
        assert ours.token_ids[limit + 1 :] == after.token_ids
        if ours.log_probs is not None:
            assert [each.token_id for each in ours.log_probs] == list(ours.token_ids)


def test_a_row_that_does_not_reason_is_left_alone(model: packhorse.Model) -> None:
    if not model.capabilities.forces_tokens:
        pytest.skip("it refuses limits")
    plain = [prompt.removesuffix(IM_START) for prompt in PROMPTS]
    limited, free = (generate(model, plain, thinking) for thinking in (3, "auto"))
    for ours, theirs in zip(limited, free, strict=True):
        assert not isinstance(ours, Failure)
        if 1 not in theirs.token_ids[:5]:
            assert ours.token_ids == theirs.token_ids
            assert ours.reasoning_tokens == 0


def tokens_after(forced: ReasoningTokens, generated: list[int], count: int) -> list[int]:
    """What a model that always chooses 9 generates next."""
    for _ in range(count):
        token = forced.next(generated)
        generated = [*generated, 9 if token is None else token]
    return generated


def test_forced_tokens() -> None:
    forced = ReasoningTokens(limit=2, token_ids=(5, 6), end=(5,))
    assert tokens_after(forced, [], 6) == [9, 9, 5, 6, 9, 9]
    assert tokens_after(forced, [5], 4) == [5, 9, 9, 9, 9]
    after_start = ReasoningTokens(limit=1, token_ids=(5,), end=(5,), start=(7, 8))
    assert tokens_after(after_start, [], 4) == [9, 9, 9, 9]
    assert tokens_after(after_start, [7, 8], 3) == [7, 8, 9, 5, 9]
    assert tokens_after(after_start, [4, 7, 8], 3) == [4, 7, 8, 9, 5, 9]
    late = [4] * 20 + [7, 8]
    assert tokens_after(after_start, late, 3) == [*late, 9, 9, 9]
