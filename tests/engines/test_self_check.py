"""Families that compute batches in their own way: equal to `generate`, restricted, or refused."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sharpened import (
    SIZES,
    TRAINED,
    config_of,
    generated,
    prompts_of,
    sharpened,
)
from subjects import by_index, tokens

from packhorse.batching.cost import CostModel, Costs, WorkCounts
from packhorse.batching.planner import plan_batches
from packhorse.batching.sizes import Limits
from packhorse.data import Batch, EngineOutput, Prompt, SamplingParams, Scores
from packhorse.engines.transformers.batch_rule import BatchRule, batch_rule
from packhorse.engines.transformers.engine import TransformersEngine
from packhorse.engines.transformers.padded_batch import PaddedBatch
from packhorse.engines.transformers.self_check import examine
from packhorse.engines.transformers.thresholds import lowered, thresholds
from packhorse.errors import ModelError

POLICIES = ("single", "fixed", "sorted-dynamic", "planned")
LIMITS = Limits(
    4, 10_000, Costs(CostModel("padded", 1, WorkCounts(0.01, 1e-3, 1e-7, 0.01, 1e-3, 1e-6)))
)
STATES = ("mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma")
TRAINED_LENGTHS = ("phi3, longrope", "llama, longrope", "llama, dynamic")
WINDOWS = ("gpt_neo, window", "llama4, chunks")
THRESHOLDS = ("llama4, scale", "doge")
"""Padding counts in rows beyond 12 tokens."""


def engine_of(folder: Path, **options: Any) -> TransformersEngine:
    defaults = {"end_ids": (), "max_context": 256, "device": "cpu", "threads": 1}
    return TransformersEngine(folder, **{**defaults, **options})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {
        name: sharpened(config_of(name), root / name)
        for name in (*STATES, *TRAINED_LENGTHS, *WINDOWS, *THRESHOLDS)
    }


def planned(engine: TransformersEngine, prompts: list[Prompt], policy: str) -> list[Batch]:
    capabilities = engine.capabilities
    return plan_batches(
        prompts,
        policy,
        LIMITS,
        mixed_decoding=True,
        share_prefixes=capabilities.shares_prefixes,
        length_group=capabilities.length_group,
    )


def answers(engine: TransformersEngine, batches: Sequence[Batch]) -> dict[int, tuple[int, ...]]:
    return tokens(by_index(engine.run(iter(batches))))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STATES, *TRAINED_LENGTHS, *WINDOWS, *THRESHOLDS])
def test_every_policy_equals_generate(folders: dict[str, Path], name: str) -> None:
    """Rows below, across and beyond what the model was trained for, in one job; one token, too."""
    prompts = prompts_of(5, 3 * TRAINED, 1, 20, TRAINED, TRAINED - 1, 40, 40, 3)
    prompts += [
        Prompt(9 + each.index, each.token_ids, SamplingParams(3 + each.index))
        for each in prompts_of(22, 30, 36, 44, shared=20)
    ]
    expected = generated(folders[name], prompts)
    engine = engine_of(folders[name])
    assert len(set(expected.values())) == len(prompts)
    for policy in POLICIES:
        assert answers(engine, planned(engine, prompts, policy)) == expected, policy
    assert answers(engine, [Batch(tuple(prompts))]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRAINED_LENGTHS, *WINDOWS])
def test_a_shared_prefix_changes_no_row(folders: dict[str, Path], name: str) -> None:
    engine = engine_of(folders[name])
    for shared, lengths in ((10, (14, 20, 60, 70)), (30, (34, 50, 70))):
        prompts = prompts_of(*lengths, shared=shared)
        expected = generated(folders[name], prompts)
        for _ in range(2):
            assert answers(engine, [Batch(tuple(prompts), shared)]) == expected


@pytest.mark.parametrize("name", ["rwkv", "recurrent_gemma", *TRAINED_LENGTHS])
def test_a_batch_that_fails_half_way_goes_on(
    folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows begin again with what they had, before and after they grew past the trained length."""
    prompts = prompts_of(TRAINED - 4, TRAINED - 4, 5, 50, 50, TRAINED - 2)
    expected = generated(folders[name], prompts)
    engine = engine_of(folders[name])
    step, steps = PaddedBatch.step, iter(range(1000))

    def fails(batch: PaddedBatch, token_ids: Sequence[int]) -> torch.Tensor:
        if next(steps) in (3, 7, 11, 12):
            raise RuntimeError("out of memory")
        return step(batch, token_ids)

    monkeypatch.setattr(PaddedBatch, "step", fails)
    results = by_index(engine.run(iter([Batch(tuple(prompts))])))
    done = {index: each for index, each in results.items() if isinstance(each, EngineOutput)}
    assert len(done) >= 3
    assert tokens(done) == {index: expected[index] for index in done}


@pytest.mark.parametrize("name", [*STATES, *TRAINED_LENGTHS])
def test_runs_that_take_turns_change_no_row(folders: dict[str, Path], name: str) -> None:
    """Also where a model keeps states or frequencies of the rows that it computed last."""
    jobs = []
    for lengths in ((TRAINED - 4, TRAINED - 2, 5, 9), (50, 44, TRAINED - 3, 7)):
        rows = prompts_of(*lengths)
        jobs.append([replace(each, decoding=SamplingParams(4 + 3 * each.index)) for each in rows])
    expected = [generated(folders[name], prompts) for prompts in jobs]
    engine = engine_of(folders[name])
    runs = [engine.run(iter([Batch(tuple(prompts))])) for prompts in jobs]
    found: list[dict[int, tuple[int, ...]]] = [{}, {}]
    while sum(map(len, found)) < 8:
        for run, results in zip(runs, found, strict=True):
            if (result := next(run, None)) is not None:
                assert isinstance(result, EngineOutput), result
                results[result.index] = result.token_ids
    assert found == expected

    def waits(row: int, token_id: int) -> bool:
        time.sleep(0.001)  # until the other thread has computed a step
        return False

    def answered(prompts: list[Prompt]) -> dict[int, tuple[int, ...]]:
        return tokens(by_index(engine.run(iter([Batch(tuple(prompts))]), waits)))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(answered, jobs)) == expected


@pytest.mark.parametrize("name", ["mamba", "rwkv", *TRAINED_LENGTHS, "gpt_neo, window"])
def test_scores_are_those_of_generating(folders: dict[str, Path], name: str) -> None:
    """Each token's log-probability is the one it would be generated with."""
    continuations = ((5,), (9, 4, 6), (77, 8, 11, 12))
    prompts = prompts_of(TRAINED - 2, 5, 60, TRAINED - 2, new=4)
    engine = engine_of(folders[name])
    batches = [Batch((prompt,)) for prompt in prompts]
    alone = {each.index: each for each in engine.score(iter(batches), continuations)}
    together = {
        each.index: each for each in engine.score(iter([Batch(tuple(prompts))]), continuations)
    }
    for prompt in prompts:
        for found in (alone[prompt.index], together[prompt.index]):
            assert isinstance(found, Scores)
            for ids, value in zip(continuations, found.log_probs, strict=True):
                assert value == pytest.approx(stepped(engine, prompt, ids), abs=1e-4)


def stepped(engine: TransformersEngine, prompt: Prompt, continuation: tuple[int, ...]) -> float:
    """log p(continuation | prompt) of an engine that generates nothing else."""
    asked = SamplingParams(max_new_tokens=len(continuation), top_log_probs=0)
    forced = iter(continuation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "packhorse.engines.transformers.engine.choose_tokens", lambda *_: [next(forced)]
        )
        (result,) = engine.run(iter([Batch((Prompt(0, prompt.token_ids, asked),))]))
    assert isinstance(result, EngineOutput)
    assert result.log_probs is not None
    return sum(each.log_prob for each in result.log_probs)


@pytest.mark.slow
def test_what_planners_are_told(folders: dict[str, Path]) -> None:
    told = {name: engine_of(folder).capabilities for name, folder in folders.items()}
    alone = {name for name, capabilities in told.items() if capabilities.rows_alone}
    assert alone == {"rwkv", "recurrent_gemma"}
    assert told["phi3, longrope"].separate_above == TRAINED
    assert told["llama, dynamic"].same_length_above == TRAINED
    assert {told[name].same_length_above for name in THRESHOLDS} == {12}
    assert told["mamba"].same_length_above is told["mamba"].separate_above is None
    sharing = {name for name, capabilities in told.items() if capabilities.shares_prefixes}
    assert sharing == set(TRAINED_LENGTHS)
    assert told["mamba"].step_bytes_per_row > told["gpt_neo, window"].step_bytes_per_row


class ForgetfulConfig(transformers.LlamaConfig):  # type: ignore[no-untyped-call]
    model_type = "forgetful"


class Forgetful(transformers.LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """Keeps no keys of the tokens before."""

    config_class = ForgetfulConfig

    def forward(self, input_ids: Any, past_key_values: Any = None, **options: Any) -> Any:
        return super().forward(input_ids=input_ids, **options)


class UnmaskedConfig(transformers.LlamaConfig):  # type: ignore[no-untyped-call]
    model_type = "unmasked"


class Unmasked(transformers.LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """Attends to padding, and counts it."""

    config_class = UnmaskedConfig

    def forward(self, input_ids: Any, past_key_values: Any = None, **options: Any) -> Any:
        options["attention_mask"] = None
        return super().forward(input_ids=input_ids, past_key_values=past_key_values, **options)


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    for config, model in ((ForgetfulConfig, Forgetful), (UnmaskedConfig, Unmasked)):
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        transformers.AutoModelForCausalLM.register(config, model, exist_ok=True)


def test_a_model_that_forgets_is_refused(tmp_path: Path) -> None:
    folder = sharpened(ForgetfulConfig(**SIZES), tmp_path / "model")
    with pytest.raises(ModelError, match="computes other logits token by token") as error:
        engine_of(folder)
    assert str(folder) in str(error.value)
    assert error.value.hint


def test_a_window_of_one_token_names_the_engine_that_runs_it(tmp_path: Path) -> None:
    config = transformers.MistralConfig(**SIZES, sliding_window=1)
    folder = sharpened(config, tmp_path / "model")
    with pytest.raises(ModelError, match="computes other logits token by token") as error:
        engine_of(folder)
    assert error.value.hint == "use --engine packed"


def test_a_model_that_sees_padding_runs_rows_of_equal_length(tmp_path: Path) -> None:
    folder = sharpened(UnmaskedConfig(**SIZES), tmp_path / "model")
    engine = engine_of(folder)
    assert (engine.capabilities.same_length_above, engine.capabilities.rows_alone) == (0, False)
    prompts = prompts_of(9, 5, 9, 30, 5, 9)
    expected = generated(folder, prompts)
    batches = planned(engine, prompts, "sorted-dynamic")
    assert sorted(len(batch.prompts) for batch in batches) == [1, 2, 3]
    for policy in POLICIES:
        assert answers(engine, planned(engine, prompts, policy)) == expected, policy
    assert answers(engine, [Batch(tuple(prompts))]) == expected


def test_thresholds_are_lowered_for_a_moment() -> None:
    build: Any = transformers.AutoModelForCausalLM
    model = build.from_config(config_of("llama4, scale"))
    attention = model.model.layers[0].self_attn
    found = thresholds(model, 10)
    assert found == {"floor_scale": 12, "attention_chunk_size": 8192}
    with lowered(model, found, 3):
        assert (attention.floor_scale, model.config.attention_chunk_size) == (3, 3)
    assert (attention.floor_scale, model.config.attention_chunk_size) == (12, 8192)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", THRESHOLDS)
def test_half_precision_hides_no_threshold(
    folders: dict[str, Path], name: str, dtype: torch.dtype
) -> None:
    loader: Any = transformers.AutoModelForCausalLM
    model = loader.from_pretrained(folders[name], dtype=dtype).eval()
    assert examine(model, folders[name]).rule.mixes_up_to == 12


def test_rows_that_may_exceed_a_threshold_share_with_equal_ones() -> None:
    rule = BatchRule(mixes_up_to=100, shares_up_to=200)
    assert rule.group(50, 50, 100) == rule.group(60, 61, 99)
    assert rule.group(50, 50, 101) == rule.group(50, 50, 120) != rule.group(60, 61, 101)
    assert [rule.needs_own_batch(most) for most in (200, 201)] == [False, True]
    assert rule.same_length_above == 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mamba", "llama, longrope", "gpt_neo, window"])
def test_half_precision_is_no_defect(folders: dict[str, Path], name: str, dtype: Any) -> None:
    loader: Any = transformers.AutoModelForCausalLM
    found = examine(loader.from_pretrained(folders[name], dtype=dtype).eval(), folders[name])
    assert found.rule.mixes_up_to is None


def test_a_family_without_a_state_is_refused(tmp_path: Path) -> None:
    config = transformers.OpenAIGPTConfig(vocab_size=200, n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(ModelError, match="openai-gpt models keep nothing"):
        engine_of(sharpened(config, tmp_path / "model"))


@pytest.mark.parametrize(
    ("rule", "prompt", "length", "at_once"),
    [
        (BatchRule(), 5, 90, 90),
        (BatchRule(24, one_scale=True, restarts=True), 5, 90, 90),
        (BatchRule(24, one_scale=True), 5, 90, 24),
        (BatchRule(24, one_scale=True), 30, 90, 90),
        (BatchRule(24), 5, 24, 24),
        (BatchRule(24), 5, 25, 24),
        (BatchRule(24), 30, 33, 30),
    ],
)
def test_what_a_row_that_begins_again_computes_at_once(
    rule: BatchRule, prompt: int, length: int, at_once: int
) -> None:
    assert rule.prefill_tokens(prompt, length) == at_once


def test_only_some_families_compute_a_row_anew_at_the_trained_length() -> None:
    build: Any = transformers.AutoModelForCausalLM
    rules = {name: batch_rule(build.from_config(config_of(name))) for name in TRAINED_LENGTHS}
    assert [rule.restarts for rule in rules.values()] == [True, False, False]
    assert batch_rule(build.from_config(config_of("llama"))) == BatchRule()


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
