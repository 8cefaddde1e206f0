"""Runs a few rows of the job: how long its answers are, and how fast this machine is just now."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace

from packhorse.batching.cost import OutputLengths
from packhorse.config import InputConfig
from packhorse.data import Completion, SamplingParams
from packhorse.estimate.predict import Setting
from packhorse.estimate.survey import Survey
from packhorse.inference.model import Model
from packhorse.profiling.run_metrics import Meter
from packhorse.tokenization import Tokenizer

PILOT_SECONDS = 20.0
ROWS_AT_ONCE = 8
CONTINUOUS_ROWS_AT_ONCE = 32
"""Of an engine that rows join and leave at every step: few are another kind of job to it."""
MOST_ROWS = 96
_SEED = 20_250_101


@dataclass(frozen=True, slots=True)
class Pilot:
    """rows: that ran. outputs: what they generated. pace: seconds they took / seconds the cost
    model gives for them, by which predictions are corrected; 1 where there is no cost model."""

    rows: int
    seconds: float
    outputs: OutputLengths
    pace: float


def run_pilot(
    model: Model,
    survey: Survey,
    reading: InputConfig,
    decoding: SamplingParams,
    seconds: float = PILOT_SECONDS,
) -> Pilot:
    """Runs rows drawn at random, a few at a time, until `seconds` have gone by.

    Equal rows run each for itself: what the cost model expects is held against rows that ran.
    """
    tokenizer = Tokenizer(model.codec, reading.system, reading.on_too_long, model.now())
    at_once = (
        CONTINUOUS_ROWS_AT_ONCE
        if model.capabilities.max_num_seqs
        else ROWS_AT_ONCE * model.capabilities.workers
    )
    drawn = random.Random(_SEED).sample(  # noqa: S311 - nothing secret
        range(len(survey.requests)), min(MOST_ROWS, len(survey.requests))
    )
    chunks = [drawn[start : start + at_once] for start in range(0, len(drawn), at_once)]
    outputs = OutputLengths()
    budget = model.budget(decoding)
    ran = 0
    started = time.monotonic()
    for done, chunk in enumerate(chunks, start=1):
        generation_run = replace(
            model.start_generation(tokenizer, decoding, budget, Meter()), deduplicate=False
        )
        for outcome in generation_run.outcomes(survey.requests[place] for place in chunk):
            if isinstance(outcome, Completion):
                outputs.observe(
                    outcome.completion_tokens, reached_limit=outcome.finish_reason == "length"
                )
        ran = done
        if time.monotonic() - started > seconds:
            break
    elapsed = time.monotonic() - started
    expected = 0.0
    if model.calibration is not None:
        setting = Setting(model.calibration, model.batching, budget)
        for chunk in chunks[:ran]:
            expected += setting.expect([survey.prompts[place] for place in chunk], outputs).seconds
    rows = sum(map(len, chunks[:ran]))
    return Pilot(rows, elapsed, outputs, elapsed / expected if expected > 0 else 1.0)
