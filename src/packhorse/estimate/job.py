"""`packhorse plan` as a function: prepare, calibrate, survey, pilot, predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from packhorse.batching import POLICIES
from packhorse.batching.memory import available_bytes, token_budget
from packhorse.batching.policies import CONTINUOUS, PLANNED
from packhorse.calibration import Calibration, describe_disturbance, stored_calibration
from packhorse.config import (
    ALLOW_PICKLE_OPTION,
    BATCHINGS_OPTION,
    ENGINES_OPTION,
    INPUT_OPTION,
    MODEL_OPTION,
    QUANTIZATIONS_OPTION,
    BatchingConfig,
    EngineConfig,
    InputConfig,
)
from packhorse.data import Prompt, SamplingParams
from packhorse.engine_protocol.registry import model_engines
from packhorse.errors import ConfigError, InputError, PackhorseError
from packhorse.estimate.pilot import PILOT_SECONDS, Pilot, run_pilot
from packhorse.estimate.predict import Prediction, Setting, interval, relative_error
from packhorse.estimate.survey import survey
from packhorse.inference.deduplication import distinct
from packhorse.inference.model import check_decoding, load_prepared, prepare_for
from packhorse.inputs import Source, detect_format, find_files, for_model, read_rows
from packhorse.jobs.frame import date_of
from packhorse.models import PreparedModel
from packhorse.storage.remote_files import local_input
from packhorse.storage.urls import is_url, public_name
from packhorse.techniques.calibrations import calibrated_in_child_process
from packhorse.techniques.grid import Combination, combinations, engine_config
from packhorse.tokenization import Tokenizer

LOSSLESS = ("float32",)


@dataclass(frozen=True, slots=True)
class EstimateConfig:
    """A job, and the techniques to consider: engines x quantizations x batchings.

    Attributes:
        max_hours: Techniques that would take longer are not recommended.
        pilot_seconds: How long rows of the job run to measure output lengths.
        allow_pickle: See `JobConfig`.
    """

    model: str = field(metadata=MODEL_OPTION)
    input: str = field(metadata=INPUT_OPTION)
    engines: tuple[str, ...] = field(
        default_factory=model_engines,
        metadata=ENGINES_OPTION,
    )
    quantizations: tuple[str, ...] = field(
        default=("float32", "int8"), metadata=QUANTIZATIONS_OPTION
    )
    batchings: tuple[str, ...] = field(default=tuple(POLICIES), metadata=BATCHINGS_OPTION)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    decoding: SamplingParams = field(default_factory=SamplingParams)
    reading: InputConfig = field(default_factory=InputConfig)
    max_hours: float | None = field(
        default=None,
        metadata={"metavar": "H", "help": "exit with 2 if no technique finishes within H hours"},
    )
    allow_pickle: bool = field(default=False, metadata=ALLOW_PICKLE_OPTION)
    pilot_seconds: float = PILOT_SECONDS


@dataclass(frozen=True, slots=True)
class JobEstimate:
    """Estimate of a job.

    Attributes:
        equal_rows: Rows that need not run because an equal row does.
        reasoning_tokens: Those of `new_tokens` that are reasoning; None for a model without tags.
        predictions: Predictions, fastest first.
        failed: Techniques that cannot be calibrated, with the reason.
        recommended: The fastest technique without accuracy loss; if none finishes within
            `max_hours`, the fastest of all that do; None if none does.
    """

    model: str
    input: str
    rows: int
    unusable_rows: int
    equal_rows: int
    prompt_tokens: int
    new_tokens: int
    reasoning_tokens: int | None
    pilot_rows: int
    pace: float
    predictions: tuple[Prediction, ...]
    failed: dict[str, str]
    recommended: Prediction | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An engine and a format that are prepared and calibrated."""

    engine: EngineConfig
    prepared: PreparedModel
    calibration: Calibration
    techniques: tuple[Combination, ...]


def estimate(config: EstimateConfig, report: Callable[[str], None]) -> JobEstimate:
    """Predict time and memory of the job for every technique.

    Formats and engines that are not prepared or calibrated yet are prepared and calibrated first.

    Raises:
        ConfigError: An option is invalid.
        InputError: The input cannot be read.
        ModelError: The model cannot be found or prepared.
        EngineError: No technique can be calibrated.
    """
    if config.input == "-":
        raise InputError("plan cannot read standard input", "save it to a file first")
    if not is_url(config.input):
        return _estimate(config, find_files([config.input]), report)
    with local_input(config.input, report) as source:
        return _estimate(config, source, report)


def _estimate(config: EstimateConfig, source: Source, report: Callable[[str], None]) -> JobEstimate:
    """Predict the job for the rows of `source`."""
    _check(config, source)  # report input errors before minutes of calibration
    grid = combinations(
        config.engines,
        config.quantizations,
        config.batchings,
        config.batching.batch_size,
        config.batching.max_batch_tokens,
    )
    candidates, failed = _candidates(config, grid, report)
    fastest = min(candidates, key=_seconds_per_token)
    policy = CONTINUOUS if fastest.calibration.capabilities.max_num_seqs else PLANNED
    batching = replace(config.batching, policy=policy)
    with load_prepared(fastest.prepared, fastest.engine, batching) as model:
        report(f"reading {public_name(config.input)}")
        model.date = date_of(config.reading.date)
        tokenizer = Tokenizer(
            model.codec,
            config.reading.system,
            config.reading.on_too_long,
            model.date,
            prompts=config.reading.prompts,
        )
        tokenizer.check_options(report)
        is_openai = detect_format(source) == "openai-batch"
        if not is_openai and not config.reading.prompts.raw_prompts:
            tokenizer.check()
        context = model.capabilities.max_context
        check_decoding(config.decoding, context)
        reading = for_model(config.reading, config.model)
        found = survey(source, reading, tokenizer, config.decoding, context, report)
        report(f"running a few of {found.rows:,} rows to measure output lengths")
        pilot = run_pilot(model, found, config.reading, config.decoding, config.pilot_seconds)
    running = distinct(found.prompts) if config.batching.deduplicate else found.prompts
    predictions = sorted(
        (
            _predict(config, candidate, technique, running, found.scale, pilot)
            for candidate in candidates
            for technique in candidate.techniques
        ),
        key=lambda prediction: prediction.load_seconds + prediction.seconds,
    )
    limit = config.decoding.max_new_tokens
    new_tokens = found.scale * len(running) * float(pilot.outputs.survival(limit).sum())
    share = pilot.reasoning_share
    return JobEstimate(
        model=config.model,
        input=public_name(config.input),
        rows=found.rows,
        unusable_rows=found.unusable,
        equal_rows=round(found.scale * (len(found.prompts) - len(running))),
        prompt_tokens=found.prompt_tokens,
        new_tokens=round(new_tokens),
        reasoning_tokens=None if share is None else round(share * new_tokens),
        pilot_rows=pilot.rows,
        pace=pilot.pace,
        predictions=tuple(predictions),
        failed=failed,
        recommended=choose_recommended(predictions, config.max_hours),
    )


def choose_recommended(
    predictions: Sequence[Prediction], max_hours: float | None
) -> Prediction | None:
    """Return the recommended prediction, see `JobEstimate`; `predictions` are fastest first."""
    allowed = float("inf") if max_hours is None else max_hours * 3600
    serving = [each for each in predictions if each.load_seconds + each.highest_seconds <= allowed]
    lossless = [each for each in serving if each.quantization in LOSSLESS]
    return next(iter(lossless or serving), None)


def _check(config: EstimateConfig, source: Source) -> None:
    check_decoding(config.decoding)
    if config.max_hours is not None and config.max_hours <= 0:
        raise ConfigError(
            f"max_hours must be above 0, got {config.max_hours}", "give a number of hours, e.g. 2.5"
        )
    read_rows(source, config.reading)


def _candidates(
    config: EstimateConfig, grid: Sequence[Combination], report: Callable[[str], None]
) -> tuple[list[_Candidate], dict[str, str]]:
    candidates: list[_Candidate] = []
    failed: dict[str, str] = {}
    kinds = dict.fromkeys((each.engine, each.quantization) for each in grid)
    first: PackhorseError | None = None
    for engine, quantization in kinds:
        chosen = engine_config(engine, quantization)
        try:
            prepared = prepare_for(
                config.model, chosen, allow_pickle=config.allow_pickle, report=report
            )
            found = stored_calibration(prepared, chosen)
            found = found or calibrated_in_child_process(
                config.model, prepared, chosen, report, config.allow_pickle
            )
        except PackhorseError as error:
            first = first or error
            failed[f"{engine} {quantization}"] = str(error)
            continue
        if found.is_disturbed:
            report(describe_disturbance(found, config.model, chosen))
        techniques = [
            each for each in grid if (each.engine, each.quantization) == (engine, quantization)
        ]
        candidates.append(_Candidate(chosen, prepared, found, tuple(techniques)))
    if not candidates and first is not None:
        raise first
    return candidates, failed


def _seconds_per_token(candidate: _Candidate) -> float:
    """Return a rough cost per generated token, to choose the technique that runs the pilot."""
    cost = candidate.calibration.coefficients
    return (cost.steps / 8 + cost.row_steps) / candidate.calibration.capabilities.workers


def _predict(
    config: EstimateConfig,
    candidate: _Candidate,
    technique: Combination,
    running: Sequence[Prompt],
    scale: float,
    pilot: Pilot,
) -> Prediction:
    """Predict one technique.

    Args:
        config: The job.
        candidate: Prepared engine and format.
        technique: Technique to predict.
        running: Surveyed rows that have to run.
        scale: See `Survey`.
        pilot: Result of the pilot run.
    """
    calibration = candidate.calibration
    batching = replace(config.batching, policy=technique.batching)
    limit = config.decoding.max_new_tokens
    budget = token_budget(
        calibration.capabilities,
        available_bytes(calibration.capabilities.device) - calibration.loaded_bytes,
        limit,
        config.batching.max_batch_tokens,
        has_costs=technique.batching == PLANNED,
    )
    expected = Setting(calibration, batching, budget).expect(running, pilot.outputs)
    seconds = expected.seconds * scale * pilot.pace
    lowest, highest = interval(seconds, relative_error(calibration, pilot.outputs, limit))
    return Prediction(
        engine=technique.engine,
        quantization=technique.quantization,
        batching=technique.batching,
        seconds=seconds,
        lowest_seconds=lowest,
        highest_seconds=highest,
        load_seconds=calibration.load_seconds,
        peak_memory_bytes=calibration.loaded_bytes + expected.peak_bytes,
        command=technique.command(
            config.model,
            public_name(config.input),
            config.decoding,
            config.reading,
            allow_pickle=config.allow_pickle,
        ),
    )
