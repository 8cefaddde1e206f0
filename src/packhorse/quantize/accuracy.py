"""Accuracy of an int8 model against float32: teacher forcing and greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from packhorse.config import EngineConfig
from packhorse.engines import load_engine
from packhorse.evaluation.quality import Output, Pair, QualityReport, compare_outputs
from packhorse.evaluation.teacher_forcing import (
    TeacherForcedModel,
    TeacherForcedScores,
    scorer,
    teacher_forced,
)
from packhorse.models import PreparedModel, model_facts
from packhorse.quantization.recipe import CalibrationRow
from packhorse.quantize.answers import generate_greedy


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Scores of an int8 model against float32 on the held-out rows, both run by their engines."""

    method: str
    forced: TeacherForcedScores
    quality: QualityReport

    def to_json(self) -> dict[str, Any]:
        """Return the measures, without those of single rows."""
        forced, quality = self.forced.to_json(), self.quality.to_json()
        return {
            "method": self.method,
            **{name: forced[name] for name in ("kl_divergence", "top1_agreement", "tokens")},
            **{
                name: quality[name]
                for name in ("judged", "identical_count", "first_token_equal", "matched_prefix")
            },
        }


def measure_accuracy(
    prepared: PreparedModel,
    quantization: str,
    reference: TeacherForcedModel | None,
    rows: Sequence[CalibrationRow],
    max_new_tokens: int,
) -> Accuracy:
    """Measure a prepared CTranslate2 model against a reference.

    Args:
        prepared: The CTranslate2 model.
        quantization: Format to run it in.
        reference: The float32 model.
        rows: Held-out rows with the reference's greedy answers.
        max_new_tokens: Maximum length of an answer (tokens).
    """
    scored = scorer(prepared, quantization)
    forced = teacher_forced(reference, scored, [(row.prompt, row.answer) for row in rows])
    assert forced is not None
    facts = model_facts(prepared)
    engine = load_engine(prepared, facts, EngineConfig("ctranslate2", "cpu", quantization))
    try:
        prompts = [row.prompt for row in rows]
        answers = generate_greedy(engine, prompts, max_new_tokens)
    finally:
        engine.close()
    ends = set(facts.eos_token_ids)
    codec = prepared.codec()
    pairs = []
    for index, (row, ours) in enumerate(zip(rows, answers, strict=True)):
        theirs = tuple(token for token in row.answer if token not in ends)
        pairs.append(
            Pair(index, Output(theirs, codec.decode(theirs)), Output(ours, codec.decode(ours)))
        )
    return Accuracy(prepared.quantization_method, forced, compare_outputs(pairs))
