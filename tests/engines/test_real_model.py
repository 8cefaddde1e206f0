"""The demonstration model on every engine: alone and in a batch, what `generate` gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from subjects import (
    alone,
    ctranslate2,
    in_batches,
    packed,
    run,
    tokens,
    transformers,
    with_decoding,
)

from packhorse.data import Prompt, SamplingParams, Scores
from packhorse.engine_protocol import Engine, Scorer

pytestmark = pytest.mark.real_model

REAL_LIMIT = 12
REAL_PROMPTS = (
    "Hi",
    "What is the capital of France?",
    "Name three small animals that live in a forest, and say what each of them eats.",
    "Write one sentence about the sea.",
    "A packhorse carries many small loads over the hills. " * 8 + "What does it carry?",
    "Translate into German: good morning",
)


@pytest.fixture(scope="session")
def real_prompts(demo_model_folder: Path) -> list[Prompt]:
    from packhorse.tokenization import HuggingFaceCodec

    codec = HuggingFaceCodec(demo_model_folder)
    ids = codec.encode_chats([[{"role": "user", "content": text}] for text in REAL_PROMPTS])
    return [
        Prompt(index, row, SamplingParams(REAL_LIMIT))
        for index, row in enumerate(ids)
        if isinstance(row, tuple)
    ]


@pytest.fixture(scope="session")
def real_reference(demo_model_folder: Path, real_prompts: list[Prompt]) -> dict[int, Any]:
    """`model.generate` of transformers, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    from packhorse.models.quiet import quiet_transformers

    with quiet_transformers():
        model: Any = AutoModelForCausalLM.from_pretrained(demo_model_folder, dtype=torch.float32)
    found = {}
    for prompt in real_prompts:
        ids = torch.tensor([prompt.token_ids])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=REAL_LIMIT
        )
        new = output[0, ids.shape[1] :].tolist()
        found[prompt.index] = tuple(new[: new.index(2)] if 2 in new else new)
    return found


def real_transformers(folder: Path) -> Engine:
    return transformers("transformers smollm2", folder, end_ids=(2,)).make(
        max_context=8192, threads=None
    )


def real_ctranslate2(folder: Path) -> Engine:
    from packhorse.models import prepare

    float32 = prepare("smollm2-135m-instruct", engine="ctranslate2", quantization="float32")
    return ctranslate2("ctranslate2 smollm2", float32.folder, end_ids=(2,)).make(max_context=8192)


def real_packed(folder: Path) -> Engine:
    """Steps of 37 tokens, six rows at most and a cache for 512 tokens: rows are put back."""
    return packed("packed smollm2", folder, (2,), "float32").make()


@pytest.mark.parametrize("load", [real_transformers, real_ctranslate2, real_packed])
def test_the_real_model_alone_and_in_a_batch_equals_generate(
    load: Callable[[Path], Engine],
    demo_model_folder: Path,
    real_prompts: list[Prompt],
    real_reference: dict[int, Any],
) -> None:
    engine = load(demo_model_folder)
    assert alone(engine, real_prompts) == real_reference
    assert tokens(run(engine, real_prompts, 6)) == real_reference
    seeded = [with_decoding(row, temperature=0.8, seed=row.index) for row in real_prompts[:3]]
    assert tokens(run(engine, seeded, 3)) == alone(engine, seeded)
    engine.close()


def test_the_packed_engine_scores_as_transformers_does(
    demo_model_folder: Path, real_prompts: list[Prompt], real_reference: dict[int, Any]
) -> None:
    """A token, in the mean of answers of up to 12 tokens and of two labels."""
    answers = [real_reference[prompt.index] for prompt in real_prompts]
    continuations = [*(ids for ids in answers if ids), (42, 7), (42, 9, 11)]
    found = []
    for load in (real_transformers, real_packed):
        engine = load(demo_model_folder)
        assert isinstance(engine, Scorer)
        results = list(engine.score(in_batches(real_prompts, 6), continuations))
        engine.close()
        found.append({each.index: each.log_probs for each in results if isinstance(each, Scores)})
        assert len(found[-1]) == len(real_prompts)
    for index, values in found[0].items():
        lengths = [len(ids) for ids in continuations]
        by_token = [
            [value / length for value, length in zip(each, lengths, strict=True)]
            for each in (values, found[1][index])
        ]
        assert by_token[1] == pytest.approx(by_token[0], abs=1e-4)


def test_int8_on_the_packed_engine_stays_near_float32(
    demo_model_folder: Path, real_prompts: list[Prompt], real_reference: dict[int, Any]
) -> None:
    """Without the turns of `stored` and `kernels` it diverges more than ten times as far."""
    from scorers import packed_scorer

    whole, rounded = (packed_scorer(demo_model_folder, form) for form in ("float32", "int8"))
    divergences, agreed = [], []
    for prompt in real_prompts:
        given = prompt.token_ids, real_reference[prompt.index]
        expected, found = whole.log_probs(*given), rounded.log_probs(*given)
        divergences.append((np.exp(expected) * (expected - found)).sum(axis=1))
        agreed.append(expected.argmax(axis=1) == found.argmax(axis=1))
    assert np.concatenate(divergences).mean() < 0.01
    assert np.concatenate(agreed).mean() > 0.9
