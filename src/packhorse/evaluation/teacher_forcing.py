"""Teacher forcing: compare two models at each token of the reference's text.

Generated texts stop being comparable at the first token that differs. Here both models read the
same prompt and the same reference continuation, and their distributions of the next token are
compared at every position, so a small change of the model gives a small number. The result depends
on the model (weights and compute type), not on batching.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from packhorse.config import EngineConfig
from packhorse.engine_protocol import LogitsProvider
from packhorse.engine_protocol.registry import engine_entry
from packhorse.engines import load_engine
from packhorse.engines.common.log_probs import log_softmax
from packhorse.errors import EngineError
from packhorse.evaluation.statistics import Estimate, bootstrap_mean, bootstrap_ratio
from packhorse.models import PreparedModel, model_facts
from packhorse.profiling.cores import usable_cores

FloatMatrix = npt.NDArray[np.float32]
_POSITIONS_AT_ONCE = 64


class TeacherForcedModel(Protocol):
    """A model that can score a given text."""

    def log_probs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> FloatMatrix:
        """Return the natural logs of the next-token distribution before each continuation token.

        Row t is the distribution given the prompt and continuation_ids[:t], shape
        (len(continuation_ids), vocabulary), float32. The prompt has at least one token.
        """
        ...


@dataclass(frozen=True, slots=True)
class TeacherForcedRow:
    """Means over the continuation tokens of a row; nll: in nats per token."""

    index: int
    tokens: int
    kl_divergence: float
    top1_agreement: float
    reference_nll: float
    trial_nll: float


@dataclass(frozen=True, slots=True)
class TeacherForcedScores:
    """Two models on the reference's text; bootstrap intervals over rows.

    kl_divergence (nats per token) and top1_agreement (share of positions where both prefer the
    same token) are means over the tokens of a row, then over rows: each row counts the same.
    perplexity_ratio is trial / reference, perplexity = exp(mean nll over all tokens of all rows),
    each token counts the same. tokens: positions compared. empty_rows: left out, without tokens.
    """

    kl_divergence: Estimate
    top1_agreement: Estimate
    perplexity_ratio: Estimate
    reference_perplexity: float
    trial_perplexity: float
    tokens: int
    empty_rows: int
    rows: tuple[TeacherForcedRow, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def teacher_forced(
    reference: TeacherForcedModel | None,
    trial: TeacherForcedModel | None,
    rows: Iterable[tuple[Sequence[int], Sequence[int]]],
    *,
    seed: int = 0,
) -> TeacherForcedScores | None:
    """Compare both models on (prompt ids, reference continuation ids) rows.

    Returns None if a model cannot be teacher-forced or no row has a continuation. An end token the
    reference generated may be part of the continuation; it is one more position. Memory: both
    models, and for one row at a time 2 x tokens x vocabulary x 4 bytes (an implementation may need
    the prompt's tokens too).

    Raises:
        EngineError: the vocabularies have different sizes, or a model gives NaN or an infinite
            divergence (float16 that overflowed).
    """
    if reference is None or trial is None:
        return None
    scored, empty = [], 0
    for index, (prompt, continuation) in enumerate(rows):
        if not continuation:
            empty += 1
            continue
        scored.append(_score(index, reference, trial, prompt, continuation))
    return _summary(scored, empty, seed) if scored else None


def log_distributions(logits: FloatMatrix) -> FloatMatrix:
    """Return the `log_softmax` of logits [positions, vocabulary] as float32.

    A few positions are computed at a time, to bound the memory of their float64 values.
    """
    result = np.empty(logits.shape, dtype=np.float32)
    for start in range(0, len(logits), _POSITIONS_AT_ONCE):
        stop = start + _POSITIONS_AT_ONCE
        result[start:stop] = log_softmax(logits[start:stop])
    return result


def kl_divergences(reference: FloatMatrix, trial: FloatMatrix) -> npt.NDArray[np.float64]:
    """Return KL(reference || trial) = sum_v p(v) (log p(v) - log q(v)) at each position (nats).

    reference, trial: natural logs, shape (positions, vocabulary). A token the reference gives
    probability 0 adds 0; one that only the trial gives 0 makes the position infinite. Computed in
    float64 on distributions normalised once more, so that float32 rounding does not make it
    negative. Source: Kullback and Leibler 1951.
    """
    parts = []
    for start in range(0, len(reference), _POSITIONS_AT_ONCE):
        stop = start + _POSITIONS_AT_ONCE
        log_p, log_q = log_softmax(reference[start:stop]), log_softmax(trial[start:stop])
        p = np.exp(log_p)
        with np.errstate(invalid="ignore"):
            terms = np.where(p > 0, p * (log_p - log_q), 0.0)
        parts.append(np.maximum(terms.sum(axis=-1), 0.0))
    return np.concatenate(parts) if parts else np.empty(0)


class EngineLogProbs:
    """A loaded engine as a `TeacherForcedModel`; one pass per row."""

    def __init__(self, engine: LogitsProvider) -> None:
        self._engine = engine

    @property
    def compute_type(self) -> str:
        """The number format that runs."""
        return self._engine.capabilities.compute_type

    def log_probs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> FloatMatrix:
        ids = _joined(prompt_ids, continuation_ids)
        return log_distributions(self._engine.logits_after(ids, len(continuation_ids)))


def scorer(prepared: PreparedModel, quantization: str) -> EngineLogProbs | None:
    """Load a prepared model on the CPU to score texts; None for an engine that gives no logits.

    Args:
        prepared: names the engine too.
        quantization: number format to compute in, for example "bfloat16" or "int8_float32".

    Raises:
        ConfigError, ModelError, EngineError: as `packhorse.engines.load_engine`.
    """
    if not engine_entry(prepared.engine).gives_logits:
        return None
    # One text at a time gains from all cores, unlike generation.
    config = EngineConfig(prepared.engine, "cpu", quantization, workers=1, threads=usable_cores())
    engine = load_engine(prepared, model_facts(prepared), config)
    if not isinstance(engine, LogitsProvider):
        engine.close()
        raise EngineError(
            f"the engine {prepared.engine} gives no logits, though its entry says so",
            "report this to the package of the engine",
        )
    return EngineLogProbs(engine)


def _score(
    index: int,
    reference: TeacherForcedModel,
    trial: TeacherForcedModel,
    prompt: Sequence[int],
    continuation: Sequence[int],
) -> TeacherForcedRow:
    ours, theirs = (model.log_probs(prompt, continuation) for model in (trial, reference))
    if ours.shape != theirs.shape:
        raise EngineError(
            f"the models score {ours.shape[-1]} and {theirs.shape[-1]} token ids",
            "compare models of one vocabulary",
        )
    divergence = float(kl_divergences(theirs, ours).mean())
    if not math.isfinite(divergence):
        raise EngineError(
            f"the divergence of row {index} is {divergence}: a model gives no usable probabilities",
            "use a compute type with a wider range, for example bfloat16 or float32",
        )
    positions = np.arange(len(continuation)), np.asarray(continuation)
    return TeacherForcedRow(
        index=index,
        tokens=len(continuation),
        kl_divergence=divergence,
        top1_agreement=float((theirs.argmax(axis=-1) == ours.argmax(axis=-1)).mean()),
        reference_nll=-float(theirs[positions].mean(dtype=np.float64)),
        trial_nll=-float(ours[positions].mean(dtype=np.float64)),
    )


def _summary(rows: list[TeacherForcedRow], empty: int, seed: int) -> TeacherForcedScores:
    tokens = [row.tokens for row in rows]
    kl = bootstrap_mean([row.kl_divergence for row in rows], seed=seed)
    top1 = bootstrap_mean([row.top1_agreement for row in rows], seed=seed)
    excess = [row.tokens * (row.trial_nll - row.reference_nll) for row in rows]
    log_ratio = bootstrap_ratio(excess, tokens, seed=seed)
    assert kl is not None
    assert top1 is not None
    assert log_ratio is not None
    total = sum(tokens)
    nll = sum(row.tokens * row.reference_nll for row in rows) / total
    return TeacherForcedScores(
        kl_divergence=kl,
        top1_agreement=top1,
        perplexity_ratio=log_ratio.mapped(np.exp),
        reference_perplexity=float(np.exp(nll)),
        trial_perplexity=float(np.exp(nll + log_ratio.value)),
        tokens=total,
        empty_rows=empty,
        rows=tuple(rows),
    )


def _joined(prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[int]:
    """Return the inputs that predict each continuation token: all ids but the last."""
    assert len(prompt_ids) > 0, "a row has at least one prompt token"
    assert len(continuation_ids) > 0, "a row has at least one continuation token"
    return [*prompt_ids, *continuation_ids[:-1]]
