"""A loaded model: takes prompts and yields completions as they finish."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from packhorse.batching.memory import TokenBudget, available_bytes, token_budget
from packhorse.batching.policies import AUTO, CONTINUOUS, PLANNED, SINGLE, get_policy
from packhorse.batching.sizes import Limits
from packhorse.calibration import Calibration, calibrate, describe_disturbance, stored_calibration
from packhorse.config import BatchingConfig, EngineConfig, OnTooLong
from packhorse.data import (
    Completion,
    Failure,
    SamplingParams,
    Scores,
)
from packhorse.engine_protocol import Engine, EngineCapabilities
from packhorse.engine_protocol.registry import engine_entry
from packhorse.engines import load_engine
from packhorse.errors import ConfigError, EngineError
from packhorse.inference.generation import GenerationRun, no_forced_tokens
from packhorse.inference.job_settings import check_sampling_support
from packhorse.inference.prompts import PromptContent, requests_of
from packhorse.models import PreparedModel, model_facts, prepare
from packhorse.openai_format.request_fields import range_error
from packhorse.params.prompt_options import PromptOptions
from packhorse.profiling.run_metrics import Meter
from packhorse.tokenization import Codec, Tokenizer

T = TypeVar("T")
_ABANDONED_RUNS: list[Any] = []
"""Runs that a forked process inherited; they are kept referenced so that they are never closed."""


@dataclass(slots=True)
class Model:
    """A loaded model, created by `packhorse.load`; a context manager that closes it.

    A process that is forked after the model was loaded cannot use it, because the engine's threads
    do not exist there and waiting for them would never end: all methods but `close`, which does
    nothing, raise EngineError.

    Attributes:
        prepared: Prepared model folder.
        engine: Engine that runs it.
        codec: Its tokenizer.
        batching: Batching options with the policy "auto" resolved.
        calibration: Measured costs of the engine; None if not calibrated.
        date: Local time that chat templates use; None for the time of the call.
    """

    prepared: PreparedModel
    engine: Engine
    codec: Codec
    batching: BatchingConfig
    calibration: Calibration | None = None
    date: datetime | None = None
    _process: int = field(default_factory=os.getpid)
    _tokenizing: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def capabilities(self) -> EngineCapabilities:
        """What is actually used: device, compute type, workers, threads, context."""
        return self.engine.capabilities

    def close(self) -> None:
        """Free the model's memory; may be called repeatedly."""
        if self._process == os.getpid():
            self.engine.close()

    def generate(
        self,
        prompts: Iterable[PromptContent],
        *,
        system: str | None = None,
        on_too_long: OnTooLong = "error",
        options: PromptOptions | None = None,
        **decoding: Any,
    ) -> Iterator[Completion | Failure]:
        """Yield a completion or failure per prompt, as they finish.

        Calls may overlap, in one thread or in several. An outcome's `index` is the position of its
        prompt. A prompt that cannot be answered (too
        long, empty) yields a Failure and does not affect others.

        Args:
            prompts: Texts, lists of chat messages, or lists of token ids.
            system: System message for all prompts.
            on_too_long: What to do with prompts longer than the context.
            options: Template options, tools, reasoning: how prompts are made and outputs read.
            decoding: Fields of `SamplingParams`, e.g. `max_new_tokens=64, temperature=0.7, seed=1`.

        Raises:
            ConfigError: A value is out of range, or the model cannot reason as asked.
        """
        chosen = replace(SamplingParams(), **decoding)
        check_decoding(chosen, self.capabilities.max_context)
        check_sampling_support(chosen, self.capabilities)
        tokenizer = Tokenizer(
            self.codec, system, on_too_long, self.now(), prompts=options or PromptOptions()
        )
        tokenizer.check_options(warnings.warn)
        generation_run = self.start_generation(tokenizer, chosen, self.budget(chosen), Meter())
        return self._guarded(generation_run.outcomes(requests_of(prompts)))

    def score(
        self,
        prompts: Iterable[PromptContent],
        continuations: Sequence[str],
        *,
        system: str | None = None,
        on_too_long: OnTooLong = "error",
    ) -> Iterator[Scores | Failure]:
        """Yield the log-probabilities of each continuation after each prompt, as they finish.

        Prompts and outcomes are as for `generate`. Log-probabilities are natural and in the order
        of `continuations`. Each prompt and each shared prompt prefix is computed once.

        Raises:
            ConfigError: A continuation is empty.
            EngineError: The engine does not score.
        """
        ids = [self.codec.encode_fragment(text) for text in continuations]
        if not ids or not all(ids):
            raise ConfigError("a continuation is empty", "give texts of at least one token")
        decoding = SamplingParams(max_new_tokens=max(map(len, ids)))
        check_decoding(decoding, self.capabilities.max_context)
        tokenizer = Tokenizer(self.codec, system, on_too_long, self.now())
        generation_run = self.start_generation(tokenizer, decoding, self.budget(decoding), Meter())
        return self._guarded(generation_run.scores(requests_of(prompts), ids))

    def _guarded(self, results: Iterator[T]) -> Iterator[T]:
        """Yield `results`; raise EngineError as soon as a forked process asks for one."""
        try:
            while True:
                self._require_own_process()
                try:
                    result = next(results)
                except StopIteration:
                    return
                yield result
        finally:
            if self._process != os.getpid():
                # Closing it would wait for threads that do not exist in this process.
                _ABANDONED_RUNS.append(results)

    def _require_own_process(self) -> None:
        if self._process != os.getpid():
            raise EngineError(
                f"this model was loaded in process {self._process}, before this process "
                f"({os.getpid()}) was forked from it, and cannot run here",
                'load it in this process, or start processes with multiprocessing\'s "spawn"',
            )

    def now(self) -> datetime:
        """Return the local time that chat templates use in one pass."""
        return self.date or datetime.now()  # noqa: DTZ005

    def budget(self, decoding: SamplingParams) -> TokenBudget:
        """Return the token budget of a batch, derived from the memory that is free now."""
        return token_budget(
            self.capabilities,
            available_bytes(self.capabilities.device),
            decoding.max_new_tokens,
            self.batching.max_batch_tokens,
            has_costs=self.batching.policy == PLANNED,
        )

    def limits(self, budget: TokenBudget) -> Limits:
        """Return the bounds of a batch, with measured costs if there are any."""
        return budget.limits(self.batching, self.calibration.costs() if self.calibration else None)

    def start_generation(
        self,
        tokenizer: Tokenizer,
        decoding: SamplingParams,
        budget: TokenBudget,
        meter: Meter,
        stopping: Callable[[], bool] = lambda: False,
    ) -> GenerationRun:
        """Return a new pass of requests through this model.

        Raises EngineError in a process that was forked after the model was loaded.
        """
        self._require_own_process()
        meter.cost_rule = self.capabilities.cost_rule
        return GenerationRun(
            engine=self.engine,
            tokenizer=tokenizer,
            policy=self.batching.policy,
            limits=self.limits(budget),
            window_rows=self.batching.window_rows,
            share_prefixes=self.batching.share_prefixes,
            deduplicate=self.batching.deduplicate,
            decoding=decoding,
            meter=meter,
            tokenizing=self._tokenizing,
            stopping=stopping,
        )


def load(
    model: str,
    *,
    engine: EngineConfig | None = None,
    batching: BatchingConfig | None = None,
    allow_pickle: bool = False,
    report: Callable[[str], None] = lambda message: None,
) -> Model:
    """Find, prepare and load a model.

    Args:
        model: Catalog name, hub id, Hugging Face folder, CTranslate2 folder or GGUF file.
        engine: Engine options.
        batching: Batching options.
        allow_pickle: Whether to read pickled weights.
        report: Called with a line of text before each step that takes long.

    Raises:
        ModelError: The model cannot be found or prepared.
        EngineError: The engine cannot run it as requested.
        ConfigError: An option is invalid.

        >>> with packhorse.load("smollm2-135m-instruct") as model:
        ...     for answer in model.generate(["What is the capital of France?"]):
        ...         print(answer.text)
    """
    chosen, batching = engine or EngineConfig(), batching or BatchingConfig()
    prepared = prepare_for(
        model, chosen, policy=batching.policy, allow_pickle=allow_pickle, report=report
    )
    return load_prepared(prepared, chosen, batching, report)


def prepare_for(
    model: str,
    engine: EngineConfig,
    *,
    policy: str = AUTO,
    sampling: Sequence[str] = (),
    allow_pickle: bool = False,
    prompts: PromptOptions | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> PreparedModel:
    """Return the verified folder of `model` in the form that `engine` loads. Raises as `load`.

    The engine "auto" is one that batches rows by `policy`, supports the fields `sampling` of
    SamplingParams, and limits reasoning if `prompts` do; `PreparedModel.engine` says which.
    """
    check_engine(engine)
    forces_tokens = prompts is not None and isinstance(prompts.thinking, int)
    if forces_tokens and engine.engine != AUTO and not engine_entry(engine.engine).forces_tokens:
        raise ConfigError(no_forced_tokens(engine.engine), "change --engine or --thinking")
    return prepare(
        model,
        engine=engine.engine,
        quantization=engine.quantization,
        device=engine.device,
        quantization_method=engine.quantization_method,
        policy=policy,
        workers=engine.workers,
        sampling=sampling,
        allow_pickle=allow_pickle,
        verify=engine.verify,
        forces_tokens=forces_tokens,
        report=report,
    )


def load_prepared(
    prepared: PreparedModel,
    engine: EngineConfig,
    batching: BatchingConfig,
    report: Callable[[str], None] = lambda message: None,
    *,
    codec: Codec | None = None,
) -> Model:
    """Load a prepared model; for the policy `planned`, calibrate the engine first if necessary.

    Args:
        prepared: Result of `prepare_for`.
        engine: Engine options.
        batching: Batching options.
        report: Called with a line of text before each step that takes long.
        codec: Tokenizer of the model, if it is already loaded.
    """
    check_batching(batching)
    engine = replace(engine, engine=prepared.engine)
    load_codec = cache(lambda: codec or prepared.codec())
    facts = model_facts(prepared, load_codec=load_codec)
    known = stored_calibration(prepared, engine)
    loaded = load_engine(prepared, facts, _with_measured_threads(engine, known))
    policy = _resolve_policy(batching.policy, loaded.capabilities)
    if policy == CONTINUOUS and not loaded.capabilities.max_num_seqs:
        loaded.close()
        raise ConfigError(
            f"the engine {loaded.capabilities.name} does not support continuous batching",
            "add --engine packed, or choose another --batching",
        )
    if policy == PLANNED and known is None:
        loaded.close()
        known = calibrate(prepared, engine, report)
        loaded = load_engine(prepared, facts, _with_measured_threads(engine, known))
    if known is not None and known.is_disturbed:
        report(describe_disturbance(known, prepared.name, engine))
    return Model(prepared, loaded, load_codec(), replace(batching, policy=policy), known)


def _with_measured_threads(engine: EngineConfig, known: Calibration | None) -> EngineConfig:
    """Return the engine options with the fastest measured division of the cores."""
    if known is None:
        return engine
    return replace(engine, workers=known.capabilities.workers, threads=known.capabilities.threads)


def _resolve_policy(policy: str, capabilities: EngineCapabilities) -> str:
    """Return the policy that "auto" stands for; engines that compute rows alone get `single`."""
    if capabilities.rows_alone:
        return SINGLE
    if policy != AUTO:
        return policy
    if capabilities.max_num_seqs:
        return CONTINUOUS
    return PLANNED if capabilities.cost_rule == "min-prefix-prefill" else "sorted-dynamic"


def check_engine(engine: EngineConfig) -> None:
    """Raise ConfigError for workers or threads below 1; None leaves them to the engine."""
    check_least({"workers": engine.workers, "threads": engine.threads}, 1)


def check_batching(batching: BatchingConfig) -> None:
    """Raise ConfigError for an unknown policy or a limit below 1."""
    if batching.policy != AUTO:
        get_policy(batching.policy)
    limits = {
        "batch_size": batching.batch_size,
        "max_batch_tokens": batching.max_batch_tokens,
        "window_rows": batching.window_rows,
    }
    check_least(limits, 1)


def check_least(numbers: Mapping[str, int | None], least: int) -> None:
    """Raise ConfigError for a named number that is below `least`."""
    for name, value in numbers.items():
        if value is not None and value < least:
            raise ConfigError(
                f"{name} must be at least {least}, got {value}", f"give {least} or more"
            )


def check_decoding(decoding: SamplingParams, max_context: int | None = None) -> None:
    """Check `decoding` against the ranges of `packhorse.openai_format.request_fields`.

    Args:
        decoding: The parameters of a job or a call.
        max_context: Context of the model (tokens), if it is known.

    Raises:
        ConfigError: For a value out of its range, or if no room is left for a prompt.
    """
    if error := range_error(decoding):
        raise ConfigError(error, "give a value in this range")
    if decoding.min_tokens > decoding.max_new_tokens:
        raise ConfigError(
            f"min_tokens must be at most max_new_tokens ({decoding.max_new_tokens}), "
            f"got {decoding.min_tokens}",
            "lower the one or raise the other",
        )
    if max_context is not None and decoding.max_new_tokens >= max_context:
        raise ConfigError(
            f"max_new_tokens of {decoding.max_new_tokens} leaves no room for a prompt: "
            f"the model's context is {max_context} tokens",
            f"give a number below {max_context}",
        )
