"""`packhorse quantize`: finds the way into int8 that changes a model least, keeps it, says what it
gained.

    prompts -> the float32 model's answers -> search on two thirds -> convert -> judge on the rest

What is found is preferred by every later `prepare` and `run` of the same model in int8.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from packhorse.config import EngineConfig, InputConfig
from packhorse.data import Request
from packhorse.engines import load_engine
from packhorse.errors import ConfigError, InputError, OutputError
from packhorse.evaluation.teacher_forcing import scorer
from packhorse.inference.model import prepare_for
from packhorse.inputs import read_rows
from packhorse.models import PreparedModel, model_facts
from packhorse.models.checkpoint import Checkpoint
from packhorse.models.original import find_original
from packhorse.models.quantized import (
    CannotFoldError,
    require_foldable,
    require_memory,
    search_bytes,
    store_recipe,
)
from packhorse.quantization.methods import AUTO, PLAIN, require_known
from packhorse.quantization.progress import Steps
from packhorse.quantization.prompts import MAX_PROMPT_TOKENS, prompt_ids, shipped_requests
from packhorse.quantization.recipe import CalibrationRow, Recipe
from packhorse.quantize.accuracy import Accuracy, accuracy
from packhorse.quantize.answers import greedy_answers
from packhorse.storage.atomic_files import copy_folder, is_there

FEWEST_ROWS = 9
_HELD_OUT_OF = 3
_METHOD_SHARES = {"smooth": 10.0, "rotate": 2.0, "rotate-smooth": 7.0}


@dataclass(frozen=True, slots=True)
class QuantizeConfig:
    """What to look for, and with what.

    quantization: an int8 format of CTranslate2. method: of `packhorse.config.QUANTIZATION_METHODS`;
    "auto" tries all the model's family can have, "plain" goes back to
    CTranslate2's own conversion. calibration: prompts like those the model will
    be used for, any input that `packhorse run` reads; None is a set of our own. rows: prompts used
    at most; a third of them judges. max_new_tokens: of each answer. output: a folder that gets a
    copy of the converted model.
    """

    model: str
    quantization: str = "int8"
    method: str = AUTO
    calibration: Path | None = None
    rows: int = 96
    max_new_tokens: int = 48
    output: Path | None = None
    allow_pickle: bool = False
    reading: InputConfig = field(default_factory=InputConfig)


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """What was found. simulated: method -> KL divergence (nats a token) of every method on the
    held-out rows, as the search saw them. plain, chosen: before and after, as CTranslate2 runs
    them. seconds: of the whole."""

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
    """Searches, keeps what was found, converts, and measures what it gained.

    Raises ConfigError for a format that is no int8 or a method the model's family cannot have,
    InputError for calibration rows that are too few, ModelError for a model that cannot be had,
    loaded or made ready, OutputError for an output folder that is there already.
    """
    started = time.monotonic()
    _check(config)
    original = find_original(config.model, allow_pickle=config.allow_pickle, report=report)
    checkpoint = original.checkpoint()
    methods = _methods(checkpoint, config.method, report)
    if methods:
        judging = -(-config.rows // _HELD_OUT_OF)
        needed = search_bytes(checkpoint, judging * (config.max_new_tokens + 1))
        require_memory("the search", needed, "do without: int8 is made ready by default")
    shares = {name: _METHOD_SHARES[name] for name in methods}
    steps = Steps(
        f"quantizing {original.title}",
        {"answering": 8, "plain": 2, **shares, "converting": 12, "measuring": 10},
        report,
    )
    rows = _answered(config, steps, report)
    held_out = rows[_HELD_OUT_OF - 1 :: _HELD_OUT_OF]
    chosen_from = [row for index, row in enumerate(rows) if index % _HELD_OUT_OF < _HELD_OUT_OF - 1]
    recipe, simulated = _search(checkpoint, methods, chosen_from, held_out, steps)
    kept = store_recipe(original.title, original.identity(), recipe, {"simulated_kl": simulated})
    plain, ready = _converted(config, steps)
    before, after = _judged(config, plain, ready, held_out, steps)
    if config.output is not None:
        _copy(ready.folder, config.output)
    return QuantizeReport(
        model=config.model,
        quantization=config.quantization,
        method=recipe.method,
        folder=config.output or ready.folder,
        recipe=kept,
        rows=len(rows),
        held_out=len(held_out),
        simulated=simulated,
        plain=before,
        chosen=after,
        seconds=time.monotonic() - started,
    )


def _methods(checkpoint: Checkpoint, asked: str, report: Callable[[str], None]) -> tuple[str, ...]:
    """The methods to try beside plain."""
    if asked == PLAIN:
        return ()
    try:
        return require_foldable(checkpoint, asked)
    except CannotFoldError as error:
        if asked != AUTO:
            raise
        report(f"{error}: plain int8 is all there is")
        return ()


def _check(config: QuantizeConfig) -> None:
    require_known(config.method)
    if not config.quantization.startswith("int8"):
        raise ConfigError(
            f"{config.quantization} needs no search: only int8 loses accuracy that can be kept",
            f"packhorse prepare MODEL --engine ctranslate2 --quantization {config.quantization}",
        )
    for name, value, least in (
        ("rows", config.rows, FEWEST_ROWS),
        ("max_new_tokens", config.max_new_tokens, 1),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}", f"give a number of at least {least}")
    if config.output is not None:
        _check_output(config.output)


def _check_output(folder: Path) -> None:
    """What can be refused before the search rather than after it."""
    if is_there(folder):
        raise OutputError(f"{folder} is there already", "name a folder that is not")
    above = folder.absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} cannot be made in {above}", "choose another --output")


def _copy(folder: Path, output: Path) -> None:
    try:
        copy_folder(folder, output)
    except OutputError as error:
        kept = f"what was found is kept; copy {folder} to where there is room for it"
        raise OutputError(str(error), kept) from error


def _requests(config: QuantizeConfig, report: Callable[[str], None]) -> list[Request]:
    if config.calibration is None:
        return shipped_requests()[: config.rows]
    reading = replace(config.reading, limit=config.reading.limit or config.rows)
    found = read_rows(config.calibration, reading, report)
    return [row for row in found if isinstance(row, Request)][: config.rows]


def _answered(
    config: QuantizeConfig, steps: Steps, report: Callable[[str], None]
) -> list[CalibrationRow]:
    """Calibration rows with the float32 model's own greedy answers; an end token belongs to an
    answer that ended."""
    advance = steps.begin("answering")
    engine = EngineConfig("transformers", "cpu", "float32")
    prepared = prepare_for(config.model, engine, allow_pickle=config.allow_pickle)
    facts = model_facts(prepared)
    room = facts.max_context - config.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"max_new_tokens of {config.max_new_tokens} leaves no room for a prompt",
            f"give a number below {facts.max_context}",
        )
    prompts = prompt_ids(prepared.codec(), _requests(config, report), min(room, MAX_PROMPT_TOKENS))
    if len(prompts) < FEWEST_ROWS:
        raise InputError(
            f"{len(prompts)} prompts can be read, and at least {FEWEST_ROWS} are needed",
            "give more rows, or leave --calibration out to use a set that is shipped",
        )
    model = load_engine(prepared, facts, engine)
    try:
        answers = greedy_answers(model, prompts, config.max_new_tokens, advance)
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
    steps: Steps,
) -> tuple[Recipe, dict[str, float]]:
    """The best recipe, and the KL divergence of every method on the held-out rows."""
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


def _converted(config: QuantizeConfig, steps: Steps) -> tuple[PreparedModel, PreparedModel]:
    """The model in int8 as CTranslate2 would convert it, and as it was found to be best."""
    steps.begin("converting")
    engine = EngineConfig("ctranslate2", quantization=config.quantization)
    plain, ready = (
        prepare_for(
            config.model,
            replace(engine, quantization_method=method),
            allow_pickle=config.allow_pickle,
        )
        for method in (PLAIN, AUTO)
    )
    return plain, ready


def _judged(
    config: QuantizeConfig,
    plain: PreparedModel,
    ready: PreparedModel,
    held_out: Sequence[CalibrationRow],
    steps: Steps,
) -> tuple[Accuracy, Accuracy]:
    advance = steps.begin("measuring")
    engine = EngineConfig("transformers", "cpu", "float32")
    prepared = prepare_for(config.model, engine, allow_pickle=config.allow_pickle)
    reference = scorer(prepared, "float32")
    before = accuracy(plain, config.quantization, reference, held_out, config.max_new_tokens)
    advance(0.5)
    if ready.fingerprint == plain.fingerprint:
        return before, before
    after = accuracy(ready, config.quantization, reference, held_out, config.max_new_tokens)
    return before, after
