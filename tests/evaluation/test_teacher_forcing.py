"""Divergences by hand and against scipy, then real models against themselves and each other."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special, stats

from packhorse.engine_protocol.registry import engine_entry
from packhorse.errors import ConfigError, EngineError, ModelError
from packhorse.evaluation.teacher_forcing import (
    TeacherForcedModel,
    kl_divergences,
    log_distributions,
    scorer,
    teacher_forced,
)
from packhorse.models.prepared import model_without_files
from scorers import ctranslate2_scorer, transformers_scorer
from tiny_models import VOCAB_SIZE, tiny_gpt2, tiny_llama

ROWS = [
    ([5, 6, 7], [8, 9, 10, 11]),
    ([20, 40, 60, 80, 100, 120], [3]),
    ([7], [30, 31, 32, 33, 34, 35, 36]),
    ([250] * 40, [251, 252] * 45),
]


class Table:
    """The same distribution at every position."""

    def __init__(self, *probabilities: float) -> None:
        with np.errstate(divide="ignore"):
            self.logs = np.log(np.array(probabilities, dtype=np.float32))

    def log_probs(
        self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        return np.tile(self.logs, (len(continuation_ids), 1))


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        ((0.5, 0.5), (0.5, 0.5), 0.0),
        ((0.5, 0.5), (0.25, 0.75), 0.5 * math.log(2) + 0.5 * math.log(2 / 3)),
        ((1.0, 0.0), (0.5, 0.5), math.log(2)),
        ((1.0, 0.0), (1.0, 0.0), 0.0),
        ((0.5, 0.5), (1.0, 0.0), math.inf),
    ],
)
def test_kl_by_hand(p: tuple[float, ...], q: tuple[float, ...], expected: float) -> None:
    (divergence,) = kl_divergences(Table(*p).log_probs([0], [0]), Table(*q).log_probs([0], [0]))
    assert divergence == pytest.approx(expected, abs=1e-7)


def test_kl_agrees_with_scipy_over_many_positions() -> None:
    rng = np.random.default_rng(0)
    p, q = special.log_softmax(rng.normal(size=(2, 150, 40)) * 3, axis=-1)
    expected = stats.entropy(np.exp(p), np.exp(q), axis=-1)
    np.testing.assert_allclose(kl_divergences(p, q), expected, rtol=1e-9)


def test_log_softmax_of_a_large_vocabulary_is_exact() -> None:
    logits = np.random.default_rng(0).normal(10, 5, size=(130, 50_000)).astype(np.float32)
    expected = special.log_softmax(logits.astype(np.float64), axis=-1)
    np.testing.assert_allclose(log_distributions(logits), expected, rtol=1e-7, atol=1e-6)


def test_rows_count_the_same_and_perplexity_counts_tokens() -> None:
    reference, trial = Table(0.5, 0.25, 0.25), Table(0.25, 0.5, 0.25)
    result = teacher_forced(reference, trial, [([0], [0]), ([0], [1, 1, 1]), ([0], [])])
    assert result is not None
    assert (result.tokens, result.empty_rows, len(result.rows)) == (4, 1, 2)
    assert result.kl_divergence.value == pytest.approx(0.25 * math.log(2))
    assert result.top1_agreement.value == 0.0
    # nll: reference (ln 2 + 3 ln 4) / 4 = 7/4 ln 2, trial (ln 4 + 3 ln 2) / 4 = 5/4 ln 2
    assert result.reference_perplexity == pytest.approx(2 ** (7 / 4))
    assert result.trial_perplexity == pytest.approx(2 ** (5 / 4))
    assert result.perplexity_ratio.value == pytest.approx(2**-0.5)
    assert result.perplexity_ratio.low == pytest.approx(0.5)
    assert result.perplexity_ratio.high == pytest.approx(2.0)
    json.dumps(result.to_json(), allow_nan=False)


def test_nothing_to_force() -> None:
    table = Table(0.5, 0.5)
    assert teacher_forced(table, None, ROWS) is None
    assert teacher_forced(None, table, ROWS) is None
    assert teacher_forced(table, table, []) is None
    assert teacher_forced(table, table, [([1], [])]) is None


def test_one_row_has_no_interval() -> None:
    result = teacher_forced(Table(0.5, 0.5), Table(0.5, 0.5), [([0], [1])])
    assert result is not None
    assert (result.kl_divergence.value, result.kl_divergence.low) == (0.0, None)
    assert (result.perplexity_ratio.value, result.perplexity_ratio.low) == (1.0, None)


def test_other_vocabulary_is_refused() -> None:
    with pytest.raises(EngineError, match="2 and 3 token ids"):
        teacher_forced(Table(0.5, 0.25, 0.25), Table(0.5, 0.5), [([0], [1])])


@pytest.mark.parametrize("broken", [(1.0, 0.0), (math.nan, math.nan)])
def test_a_model_that_overflowed_is_refused(broken: tuple[float, ...]) -> None:
    with pytest.raises(EngineError, match="no usable probabilities"):
        teacher_forced(Table(0.5, 0.5), Table(*broken), [([0], [1])])


def test_scorers_by_name(tmp_path: Path) -> None:
    assert scorer(model_without_files("any", "fake"), "float32") is None
    with pytest.raises(ConfigError, match="unknown engine 'vllm'") as raised:
        scorer(model_without_files("any", "vllm"), "float32")
    assert "transformers, ctranslate2" in raised.value.hint
    for engine in ("transformers", "ctranslate2"):
        broken = replace(
            model_without_files("any", engine),
            kind=engine_entry(engine).model_kind,
            folder=tmp_path,
            tokenizer_folder=tmp_path,
        )
        with pytest.raises(ModelError, match=str(tmp_path)):
            scorer(broken, "float32")


def convert(folder: Path, quantization: str | None = None) -> Path:
    from ctranslate2.converters import TransformersConverter

    output = folder.with_name(f"{folder.name}-{quantization}")
    TransformersConverter(str(folder)).convert(str(output), quantization=quantization)
    return output


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_each_position_sees_its_own_left_context(tmp_path: Path, make: Any) -> None:
    """One forward pass over the whole text equals one over each of its beginnings."""
    model = transformers_scorer(make(tmp_path / "model"))
    prompt, continuation = ROWS[0]
    whole = model.log_probs(prompt, continuation)
    assert whole.shape == (len(continuation), VOCAB_SIZE)
    np.testing.assert_allclose(np.exp(whole).sum(axis=1), 1.0, atol=1e-5)
    for position in range(len(continuation)):
        (row,) = model.log_probs([*prompt, *continuation[:position]], [0])
        np.testing.assert_allclose(row, whole[position], atol=1e-4)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_ctranslate2_in_float32_is_the_same_model(tmp_path: Path, make: Any) -> None:
    folder = make(tmp_path / "model")
    reference, trial = transformers_scorer(folder), ctranslate2_scorer(convert(folder))
    for prompt, continuation in ROWS:
        ours = trial.log_probs(prompt, continuation)
        np.testing.assert_allclose(ours, reference.log_probs(prompt, continuation), atol=2e-3)
    result = teacher_forced(reference, trial, ROWS)
    assert result is not None
    assert result.kl_divergence.value < 1e-7
    assert result.top1_agreement.value == 1.0
    assert result.perplexity_ratio.value == pytest.approx(1.0, abs=1e-5)


def test_a_changed_model_is_found(llama: Path, tmp_path: Path) -> None:
    reference = transformers_scorer(llama)
    same = teacher_forced(reference, reference, ROWS)
    rounded = teacher_forced(reference, transformers_scorer(llama, "bfloat16"), ROWS)
    other = teacher_forced(reference, transformers_scorer(tiny_llama(tmp_path, seed=1)), ROWS)
    assert same is not None
    assert rounded is not None
    assert other is not None
    assert same.kl_divergence.value == 0.0
    assert 0.0 < rounded.kl_divergence.value < 0.1 < other.kl_divergence.value
    assert other.top1_agreement.value < 0.5 < rounded.top1_agreement.value


@pytest.mark.real_model
def test_int8_of_the_demonstration_model(demo_model_folder: Path) -> None:
    """Close to float32, not equal to it, and closer for having been made ready."""
    from transformers import AutoTokenizer

    from packhorse.models import prepare

    plain, ready = (
        prepare(
            "smollm2-135m-instruct",
            engine="ctranslate2",
            quantization="int8",
            quantization_method=method,
        )
        for method in ("plain", "auto")
    )
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder)
    rows = [
        (tokenizer(prompt)["input_ids"], tokenizer(text)["input_ids"])
        for prompt, text in [
            ("The capital of France is", " Paris, which lies on the river Seine."),
            ("To make tea, first", " boil the water, then pour it over the leaves."),
            ("One, two, three, four,", " five, six, seven, eight, nine, ten."),
        ]
    ]
    reference: TeacherForcedModel = transformers_scorer(demo_model_folder)
    trial = ctranslate2_scorer(plain.folder, "int8")
    assert trial.compute_type.startswith("int8")
    result = teacher_forced(reference, trial, rows)
    better = teacher_forced(reference, ctranslate2_scorer(ready.folder, "int8"), rows)
    assert result is not None
    assert better is not None
    assert 0.001 < result.kl_divergence.value < 0.3
    assert 0.0005 < better.kl_divergence.value < 0.6 * result.kl_divergence.value
    assert result.top1_agreement.value > 0.6
    assert result.perplexity_ratio.value == pytest.approx(1.0, abs=0.3)
