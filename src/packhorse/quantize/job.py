"""Find the int8 recipe that changes a model least, store it, and measure what it gains.

    prompts -> float32 answers -> search on two thirds -> convert -> measure on the held-out third

Every later `prepare` and `run` of the same model in int8 uses the stored recipe.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from packhorse.config import (
    ALLOW_PICKLE_OPTION,
    MODEL_OPTION,
    QUANTIZATION_METHODS,
    QUANTIZATIONS,
    EngineConfig,
    InputConfig,
)
from packhorse.data import Request
from packhorse.engines import load_engine
from packhorse.errors import ConfigError, InputError, OutputError
from packhorse.evaluation.teacher_forcing import scorer
from packhorse.inference.model import prepare_for
from packhorse.inputs import read_rows
from packhorse.models import PreparedModel, model_facts
from packhorse.models.checkpoint import Checkpoint
from packhorse.models.int8_preparation import (
    CannotFoldError,
    require_foldable,
    require_memory,
    search_bytes,
    store_recipe,
)
from packhorse.models.original import find_original
from packhorse.profiling.cores import limit_torch_threads
from packhorse.quantization.methods import AUTO, PLAIN, require_known
from packhorse.quantization.progress import StepProgress
from packhorse.quantization.prompts import MAX_PROMPT_TOKENS, shipped_requests, tokenize_prompts
from packhorse.quantization.recipe import CalibrationRow, Recipe
from packhorse.quantize.accuracy import Accuracy, measure_accuracy
from packhorse.quantize.answers import generate_greedy
from packhorse.storage.atomic_files import copy_folder, is_there

FEWEST_ROWS = 9
_HELD_OUT_OF = 3
_METHOD_SHARES = {"smooth": 10.0, "rotate": 2.0, "rotate-smooth": 7.0}


@dataclass(frozen=True, slots=True)
class QuantizeConfig:
    """Settings of a search.

    Attributes:
        model: Name or path of the model.
        quantization: An int8 format of CTranslate2.
        method: One of `config.QUANTIZATION_METHODS`. "auto" tries all methods that the model's
            family supports; "plain" returns to CTranslate2's own conversion.
        calibration: Prompts like those the model will be used for, any input that `packhorse run`
            reads; None uses the prompts shipped with the package.
        rows: Maximum number of prompts; a third of them is held out for measuring.
        max_new_tokens: Maximum length of an answer (tokens).
        output: Folder for a copy of the converted model, or None.
        allow_pickle: Accept PyTorch pickles as weights.
        reading: How to read `calibration`.
    """

    model: str = field(metadata=MODEL_OPTION)
    quantization: str = field(
        default="int8",
        metadata={
            "help": "number format of weights and matrix products",
            "choices": [name for name in QUANTIZATIONS if name.startswith("int8")],
        },
    )
    method: str = field(
        default=AUTO,
        metadata={
            "flags": ("--quantization-method",),
            "aliases": ("--method",),
            "help": "search this method only",
            "choices": QUANTIZATION_METHODS,
            "default": "auto: all that the model's family supports",
        },
    )
    calibration: Path | None = field(
        default=None,
        metadata={
            "help": "prompts like those that the model will be used for, in any format of run",
            "default": "96 varied prompts, shipped",
        },
    )
    rows: int = field(
        default=96,
        metadata={
            "help": "use at most N calibration prompts, a third of them to evaluate the result"
        },
    )
    max_new_tokens: int = 48
    output: Path | None = field(
        default=None,
        metadata={
            "flags": ("-o", "--output"),
            "metavar": "FOLDER",
            "help": "copy the quantized model to this folder",
        },
    )
    allow_pickle: bool = field(default=False, metadata=ALLOW_PICKLE_OPTION)
    reading: InputConfig = field(default_factory=InputConfig)


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """Result of a search.

    Attributes:
        model: Name or path of the model.
        quantization: Format of the converted model.
        method: The best method.
        folder: Folder of the converted model.
        recipe: File of the stored recipe.
        rows: Calibration rows used, held-out rows included.
        held_out: Held-out rows.
        simulated: Method -> KL divergence on the held-out rows in simulated int8 (nats per token).
        plain: Accuracy of plain int8 on CTranslate2.
        chosen: Accuracy of the converted model on CTranslate2.
        seconds: Duration of the whole (seconds).
    """

    model: str
    quantization: str
    method: str
    folder: Path
    recipe: Path
    rows: int
    held_out: int
    simulated: Mapping[str, float]
    plain: Accuracy
    chosen: Accuracy
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(replace(self, plain=None, chosen=None)),  # type: ignore[arg-type]
            "folder": str(self.folder),
            "recipe": str(self.recipe),
            "plain": self.plain.to_json(),
            "chosen": self.chosen.to_json(),
        }


def quantize(
    config: QuantizeConfig, report: Callable[[str], None] = lambda line: None
) -> QuantizeReport:
    """Search for the best recipe, store it, convert the model, and measure the gain.

    Args:
        config: Settings.
        report: Receives progress lines.

    Raises:
        ConfigError: The format is not int8, or the model's family does not support the method.
        InputError: There are too few calibration rows.
        ModelError: The model cannot be found, loaded or prepared.
        OutputError: The output folder exists already or cannot be written.
    """
    started = time.monotonic()
    _check(config)
    limit_torch_threads()
    original = find_original(config.model, allow_pickle=config.allow_pickle, report=report)
    checkpoint = original.checkpoint()
    methods = _methods(checkpoint, config.method, report)
    if methods:
        judging = -(-config.rows // _HELD_OUT_OF)
        needed = search_bytes(checkpoint, judging * (config.max_new_tokens + 1))
        require_memory("the search", needed, "skip it: int8 is prepared by a default recipe")
    shares = {name: _METHOD_SHARES[name] for name in methods}
    steps = StepProgress(
        f"quantizing {original.title}",
        {"answering": 8, "plain": 2, **shares, "converting": 12, "measuring": 10},
        report,
    )
    rows = _calibration_rows(config, steps, report)
    held_out = rows[_HELD_OUT_OF - 1 :: _HELD_OUT_OF]
    chosen_from = [row for index, row in enumerate(rows) if index % _HELD_OUT_OF < _HELD_OUT_OF - 1]
    recipe, simulated = _search(checkpoint, methods, chosen_from, held_out, steps)
    stored = store_recipe(original.title, original.identity(), recipe, {"simulated_kl": simulated})
    plain, tuned = _convert(config, steps)
    before, after = _measure(config, plain, tuned, held_out, steps)
    if config.output is not None:
        _copy(tuned.folder, config.output)
    return QuantizeReport(
        model=config.model,
        quantization=config.quantization,
        method=recipe.method,
        folder=config.output or tuned.folder,
        recipe=stored,
        rows=len(rows),
        held_out=len(held_out),
        simulated=simulated,
        plain=before,
        chosen=after,
        seconds=time.monotonic() - started,
    )


def _methods(
    checkpoint: Checkpoint, requested: str, report: Callable[[str], None]
) -> tuple[str, ...]:
    """Return the methods to try beside plain."""
    if requested == PLAIN:
        return ()
    try:
        return require_foldable(checkpoint, requested)
    except CannotFoldError as error:
        if requested != AUTO:
            raise
        report(f"{error}: only plain int8 is available")
        return ()


def _check(config: QuantizeConfig) -> None:
    require_known(config.method)
    if not config.quantization.startswith("int8"):
        raise ConfigError(
            f"{config.quantization} needs no search, which is for int8 formats",
            f"packhorse prepare MODEL --engine ctranslate2 --quantization {config.quantization}",
        )
    for name, value, least in (
        ("rows", config.rows, FEWEST_ROWS),
        ("max_new_tokens", config.max_new_tokens, 1),
    ):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}", f"raise {name}")
    if config.output is not None:
        _check_output(config.output)


def _check_output(folder: Path) -> None:
    """Raise OutputError before the search for a folder that cannot be written."""
    if is_there(folder):
        raise OutputError(f"{folder} exists already", "choose a folder that does not exist")
    above = folder.absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} cannot be created in {above}", "choose another --output")


def _copy(folder: Path, output: Path) -> None:
    try:
        copy_folder(folder, output)
    except OutputError as error:
        hint = f"the recipe is stored; copy {folder} to a disk with enough space"
        raise OutputError(str(error), hint) from error


def _requests(config: QuantizeConfig, report: Callable[[str], None]) -> list[Request]:
    if config.calibration is None:
        return shipped_requests()[: config.rows]
    reading = replace(config.reading, limit=config.reading.limit or config.rows)
    found = read_rows(config.calibration, reading, report)
    return [row for row in found if isinstance(row, Request)][: config.rows]


def _calibration_rows(
    config: QuantizeConfig, steps: StepProgress, report: Callable[[str], None]
) -> list[CalibrationRow]:
    """Return calibration rows with the float32 model's greedy answers.

    An answer that ended includes its end token.
    """
    advance = steps.begin("answering")
    engine = EngineConfig("transformers", "cpu", "float32")
    prepared = prepare_for(config.model, engine, allow_pickle=config.allow_pickle)
    facts = model_facts(prepared)
    room = facts.max_context - config.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"max_new_tokens must be less than the model's context of {facts.max_context} tokens, "
            f"got {config.max_new_tokens}",
            "lower max_new_tokens",
        )
    prompts = tokenize_prompts(
        prepared.codec(), _requests(config, report), min(room, MAX_PROMPT_TOKENS)
    )
    if len(prompts) < FEWEST_ROWS:
        raise InputError(
            f"at least {FEWEST_ROWS} prompts are needed, got {len(prompts)} usable ones",
            "add rows, or remove --calibration to use the shipped prompts",
        )
    model = load_engine(prepared, facts, engine)
    try:
        answers = generate_greedy(model, prompts, config.max_new_tokens, advance)
    finally:
        model.close()
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        end = facts.eos_token_ids[:1] if len(answer) < config.max_new_tokens else ()
        rows.append(CalibrationRow(prompt, (*answer, *end)))
    return rows


def _search(
    checkpoint: Checkpoint,
    methods: Sequence[str],
    rows: Sequence[CalibrationRow],
    held_out: Sequence[CalibrationRow],
    steps: StepProgress,
) -> tuple[Recipe, dict[str, float]]:
    """Return the best recipe, and the KL divergence of every method on the held-out rows."""
    if not methods:
        return Recipe(PLAIN, 0, {}, ()), {}
    from packhorse.models.loading import load_float32
    from packhorse.quantization.search import search

    advances: dict[str, Callable[[float], None]] = {}

    def advance(method: str, share: float) -> None:
        if method not in advances:
            advances[method] = steps.begin(method)
        advances[method](share)

    found = search(load_float32(checkpoint), methods, rows, held_out, advance)
    return found.best.recipe, {trial.recipe.method: trial.divergence.kl for trial in found.trials}


def _convert(config: QuantizeConfig, steps: StepProgress) -> tuple[PreparedModel, PreparedModel]:
    """Return the model in plain int8, and in int8 by the stored recipe."""
    steps.begin("converting")
    engine = EngineConfig("ctranslate2", quantization=config.quantization)
    plain, tuned = (
        prepare_for(
            config.model,
            replace(engine, quantization_method=method),
            allow_pickle=config.allow_pickle,
        )
        for method in (PLAIN, AUTO)
    )
    return plain, tuned


def _measure(
    config: QuantizeConfig,
    plain: PreparedModel,
    tuned: PreparedModel,
    held_out: Sequence[CalibrationRow],
    steps: StepProgress,
) -> tuple[Accuracy, Accuracy]:
    advance = steps.begin("measuring")
    engine = EngineConfig("transformers", "cpu", "float32")
    prepared = prepare_for(config.model, engine, allow_pickle=config.allow_pickle)
    reference = scorer(prepared, "float32")
    before = measure_accuracy(
        plain, config.quantization, reference, held_out, config.max_new_tokens
    )
    advance(0.5)
    if tuned.fingerprint == plain.fingerprint:
        return before, before
    after = measure_accuracy(tuned, config.quantization, reference, held_out, config.max_new_tokens)
    return before, after
