"""CTranslate2 and models whose attention reaches back only so far: right, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from subjects import codes, converted, in_batches, run, tokens, with_decoding

import packhorse
from packhorse.config import BatchingConfig, EngineConfig
from packhorse.data import Batch, Completion, Prompt, SamplingParams, Scores
from packhorse.engines.ctranslate2 import log_probs
from packhorse.engines.ctranslate2.engine import CTranslate2Engine
from random_models import SIZES as SMALL
from random_models import saved

WINDOW = 11
SIZES: dict[str, Any] = {**SMALL, "vocab_size": 300}
MODELS: dict[str, Any] = {
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=WINDOW),
    "gemma3": transformers.Gemma3TextConfig(
        **SIZES,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
}
Model = tuple[Any, Path, Path]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The model in transformers, its folder and its CTranslate2 folder."""
    folder = tmp_path_factory.mktemp(request.param)
    made = saved(MODELS[request.param], folder)
    return made, folder, converted(folder, folder / "converted")


@pytest.fixture
def engine(model: Model) -> CTranslate2Engine:
    return CTranslate2Engine(
        model[2], end_ids=(), max_context=128, workers=1, elsewhere="use --engine other"
    )


def prompts(lengths: tuple[int, ...], new: int = 30, common: int = 0) -> list[Prompt]:
    """Prompts of random tokens, of which the first `common` are the same."""
    drawn = np.random.default_rng(3).integers(5, 200, (len(lengths), max(lengths)))
    drawn[:, :common] = drawn[0, :common]
    return [
        Prompt(index, tuple(drawn[index, :length].tolist()), SamplingParams(max_new_tokens=new))
        for index, length in enumerate(lengths)
    ]


def generated(made: Any, prompt: Prompt) -> tuple[int, ...]:
    ids = torch.tensor([prompt.token_ids])
    new = prompt.decoding.max_new_tokens
    out = made.generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
    return tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("rows", [1, 5])
def test_rows_that_grow_beyond_the_window(
    model: Model, engine: CTranslate2Engine, rows: int
) -> None:
    asked = prompts((WINDOW, 3, 10, 1, 7))
    found = tokens(run(engine, asked, rows))
    assert found == {prompt.index: generated(model[0], prompt) for prompt in asked}


def test_shared_prefixes_up_to_the_window(model: Model, engine: CTranslate2Engine) -> None:
    asked = prompts((WINDOW, WINDOW - 1, WINDOW), common=WINDOW - 2)
    (batch,) = in_batches(asked, 3)
    results = engine.run(iter([Batch(batch.prompts, shared_prefix=WINDOW - 2)]))
    found = tokens({result.index: result for result in results})
    assert found == {prompt.index: generated(model[0], prompt) for prompt in asked}


def test_longer_prompts_are_refused_alone(model: Model, engine: CTranslate2Engine) -> None:
    asked = prompts((WINDOW, WINDOW + 1, 40, 6), new=4, common=5)
    results = run(engine, asked, rows=4)
    assert codes(results) == {0: "", 1: "prompt_too_long", 2: "prompt_too_long", 3: ""}
    message = getattr(results[2], "message", "")
    assert "40 tokens" in message
    assert f"attention window of {WINDOW} wrongly: use --engine other" in message
    assert engine.capabilities.max_prompt == WINDOW
    kept = {0: generated(model[0], asked[0]), 3: generated(model[0], asked[3])}
    assert tokens({0: results[0], 3: results[3]}) == kept


def test_rows_that_are_taken_up_again_beyond_the_window(
    model: Model, engine: CTranslate2Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch whose rows ask for log-probabilities ends early and goes on as a new one."""
    monkeypatch.setattr(log_probs, "KEPT_BYTES", 4 * 300 * 40)
    monkeypatch.setattr(log_probs, "LEAST_STEPS", 5)
    plain = prompts((WINDOW, 4, 9), new=25)
    asked = [with_decoding(prompt, top_log_probs=0) for prompt in plain]
    found = tokens(run(engine, asked, rows=3))
    assert found == {prompt.index: generated(model[0], prompt) for prompt in plain}


@pytest.mark.parametrize("shared", [0, WINDOW - 2])
def test_scores_beyond_the_window(model: Model, engine: CTranslate2Engine, shared: int) -> None:
    asked = prompts((WINDOW, WINDOW - 1, WINDOW + 5), common=WINDOW - 2)
    continuations = [(7, 8, 9, 10), (7, 9), (11,)]
    found = list(engine.score(iter([Batch(tuple(asked), shared_prefix=shared)]), continuations))
    assert [type(result) is Scores for result in found] == [True, True, False]
    for prompt, result in zip(asked[:2], found, strict=False):
        assert isinstance(result, Scores)
        for ids, score in zip(continuations, result.log_probs, strict=True):
            text = torch.tensor([(*prompt.token_ids, *ids)])
            known = model[0](text).logits[0].log_softmax(-1)[len(prompt.token_ids) - 1 :]
            wanted = sum(float(known[place, token]) for place, token in enumerate(ids))
            assert score == pytest.approx(wanted, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["single", "planned"])
def test_common_beginnings_longer_than_the_window(
    model: Model, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row is answered or refused; the process once ended here."""
    monkeypatch.setenv("PACKHORSE_HOME", str(tmp_path))
    texts = ["the packhorse carries many small loads over the hills, " + end for end in "abcd"]
    loaded = packhorse.load(
        str(model[1]),
        engine=EngineConfig(engine="ctranslate2", workers=1),
        batching=BatchingConfig(policy=policy),
    )
    with loaded as opened:
        answers = list(opened.generate([*texts, "hi", "he"], max_new_tokens=4))
    assert [
        isinstance(answer, Completion) for answer in sorted(answers, key=lambda a: a.index)
    ] == [
        *(False,) * 4,
        *(True,) * 2,
    ]
    refused = next(answer for answer in answers if not isinstance(answer, Completion))
    assert refused.code == "prompt_too_long"
    assert "use --engine packed" in refused.message
