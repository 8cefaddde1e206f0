"""Pilot run of a few rows: measures how long outputs are and how fast the machine is now."""

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
"""Rows at once for an engine with continuous batching, whose speed with few rows differs."""
MOST_ROWS = 96
_SEED = 20_250_101


@dataclass(frozen=True, slots=True)
class Pilot:
    """Result of a pilot run.

    Attributes:
        rows: Number of rows that ran.
        seconds: Time that they took.
        outputs: Their output lengths.
        pace: Measured seconds / seconds that the cost model predicts for these rows; corrects
            predictions. 1 without a cost model.
        reasoning_share: Tokens of reasoning / generated tokens; None for a model without tags.
    """

    rows: int
    seconds: float
    outputs: OutputLengths
    pace: float
    reasoning_share: float | None = None


def run_pilot(
    model: Model,
    survey: Survey,
    reading: InputConfig,
    decoding: SamplingParams,
    seconds: float = PILOT_SECONDS,
) -> Pilot:
    """Run randomly drawn rows, a few at a time, until `seconds` have passed.

    Equal rows run separately, because the prediction is compared with rows that ran.
    """
    tokenizer = Tokenizer(
        model.codec,
        reading.system,
        reading.on_too_long,
        model.now(),
        prompts=reading.prompts,
    )
    at_once = (
        CONTINUOUS_ROWS_AT_ONCE
        if model.capabilities.max_num_seqs
        else ROWS_AT_ONCE * model.capabilities.workers
    )
    drawn = random.Random(_SEED).sample(  # noqa: S311 - not for cryptography
        range(len(survey.requests)), min(MOST_ROWS, len(survey.requests))
    )
    chunks = [drawn[start : start + at_once] for start in range(0, len(drawn), at_once)]
    outputs = OutputLengths()
    generated, reasoning = 0, list[int]()
    budget = model.budget(decoding)
    ran = 0
    started = time.monotonic()
    for done, chunk in enumerate(chunks, start=1):
        generation_run = replace(
            model.start_generation(tokenizer, decoding, budget, Meter()), deduplicate=False
        )
        for outcome in generation_run.outcomes(survey.requests[place] for place in chunk):
            if isinstance(outcome, Completion):
                generated += outcome.completion_tokens
                if outcome.reasoning_tokens is not None:
                    reasoning.append(outcome.reasoning_tokens)
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
    share = sum(reasoning) / max(1, generated) if reasoning else None
    return Pilot(rows, elapsed, outputs, elapsed / expected if expected > 0 else 1.0, share)
