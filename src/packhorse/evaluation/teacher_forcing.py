"""The reference's text scored by two models: what a changed model would have said at each token.

Generation stops being comparable at the first token that differs. Here both models read the same
prompt and the same reference continuation, and their distributions over the next token are compared
at every position, so a small change of the model gives a small number. The result belongs to the
model (weights and compute type) and not to how rows are batched.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from packhorse.errors import ConfigError, EngineError, ModelError
from packhorse.evaluation.statistics import Estimate, bootstrap_mean, bootstrap_ratio
from packhorse.models.ctranslate2_folder import read_variables, smallest_window
from packhorse.models.loading import load_config
from packhorse.models.quiet import quiet_transformers

FloatMatrix = npt.NDArray[np.float32]
_POSITIONS_AT_ONCE = 64


class TeacherForcedModel(Protocol):
    """A model that can score a text it did not write."""

    def log_probs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> FloatMatrix:
        """Natural logs of the next-token distribution before each continuation token.

        Row t is the distribution given the prompt and continuation_ids[:t], shape
        (len(continuation_ids), vocabulary), float32. The prompt has at least one token.
        """
        ...


@dataclass(frozen=True, slots=True)
class TeacherForcedRow:
    """Means over the continuation tokens of one row; nll: negative log-likelihood (nats/token)."""

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

    None where a model cannot be teacher-forced or no row has a continuation. An end token the
    reference generated may be part of the continuation; it is one more position. Memory: both
    models, and for one row at a time 2 x tokens x vocabulary x 4 bytes (an implementation may need
    the prompt's tokens too). EngineError where the vocabularies have different sizes or a model
    gives NaN or an infinite divergence (float16 that overflowed).
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


def log_softmax(logits: FloatMatrix) -> FloatMatrix:
    """Natural logs of the distributions of `logits` (positions, vocabulary), normalised in float64.

    The sum over a large vocabulary in float32 leaves errors of 1e-5 (torch) to 3e-5 (CTranslate2)
    in every log-probability: more than two float32 engines differ by. One function for all engines.
    """
    result = np.empty(logits.shape, dtype=np.float32)
    for start in range(0, len(logits), _POSITIONS_AT_ONCE):
        stop = start + _POSITIONS_AT_ONCE
        result[start:stop] = _normalised(logits[start:stop])
    return result


def kl_divergences(reference: FloatMatrix, trial: FloatMatrix) -> npt.NDArray[np.float64]:
    """KL(reference || trial) = sum_v p(v) (log p(v) - log q(v)) at each position (nats).

    reference, trial: natural logs, shape (positions, vocabulary). A token the reference gives
    probability 0 adds 0; one that only the trial gives 0 makes the position infinite. Computed in
    float64 on distributions normalised once more, so that float32 rounding does not make it
    negative. Source: Kullback and Leibler 1951.
    """
    parts = []
    for start in range(0, len(reference), _POSITIONS_AT_ONCE):
        stop = start + _POSITIONS_AT_ONCE
        log_p, log_q = _normalised(reference[start:stop]), _normalised(trial[start:stop])
        p = np.exp(log_p)
        with np.errstate(invalid="ignore"):
            terms = np.where(p > 0, p * (log_p - log_q), 0.0)
        parts.append(np.maximum(terms.sum(axis=-1), 0.0))
    return np.concatenate(parts) if parts else np.empty(0)


class TransformersLogProbs:
    """A Hugging Face folder on the CPU; one unpadded forward pass a row."""

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        from transformers import AutoModelForCausalLM

        try:
            with quiet_transformers():
                self._model: Any = AutoModelForCausalLM.from_pretrained(
                    folder,
                    config=load_config(folder),
                    dtype=dtype,
                    local_files_only=True,
                    trust_remote_code=False,
                )
        except Exception as error:  # transformers raises many kinds
            raise _load_error(folder, error) from error
        forward = inspect.signature(self._model.forward).parameters
        self._keeps_logits = "logits_to_keep" in forward

    def log_probs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> FloatMatrix:
        import torch

        ids = _joined(prompt_ids, continuation_ids)
        count = len(continuation_ids)
        keep = {"logits_to_keep": count} if self._keeps_logits else {}
        with torch.inference_mode():
            output = self._model(torch.tensor([ids]), use_cache=False, **keep)
            logits: FloatMatrix = output.logits[0, -count:].float().numpy()
        return log_softmax(logits)


class CTranslate2LogProbs:
    """A CTranslate2 folder in the compute type it is given; one forward pass a row.

    CTranslate2 returns the logits of the prompt too: (prompt + tokens) x vocabulary x 4 bytes.
    """

    def __init__(self, folder: Path, compute_type: str = "default", threads: int = 0) -> None:
        """threads: 0 is all cores; a whole text at once gains from them, unlike generation."""
        import ctranslate2

        try:
            self._generator: Any = ctranslate2.Generator(
                str(folder), device="cpu", compute_type=compute_type, intra_threads=threads
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _load_error(folder, error) from error
        self._window = smallest_window(read_variables(folder))

    @property
    def compute_type(self) -> str:
        """What really runs."""
        return str(self._generator.compute_type)

    def log_probs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> FloatMatrix:
        import ctranslate2

        ids = _joined(prompt_ids, continuation_ids)
        if 0 < self._window < len(ids):
            raise EngineError(
                f"CTranslate2 computes a text of {len(ids)} tokens wrongly at once: the model's "
                f"attention window is {self._window}",
                "add --no-teacher-forcing, or leave this engine out",
            )
        storage = self._generator.forward_batch([ids])
        if storage.dtype != ctranslate2.DataType.float32:
            storage = storage.to(ctranslate2.DataType.float32)
        return log_softmax(np.asarray(storage)[0, len(prompt_ids) - 1 :])


class PackedLogProbs:
    """A Hugging Face folder on the packed engine, in its float32 or int8."""

    def __init__(self, folder: Path, compute_type: str = "float32") -> None:
        from packhorse.engines.packed import PackedEngine, read_architecture

        context = read_architecture(folder).config.max_position_embeddings
        self._engine = PackedEngine(
            folder, end_ids=(), max_context=context, quantization=compute_type, threads=1
        )

    def log_probs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> FloatMatrix:
        ids = _joined(prompt_ids, continuation_ids)
        return log_softmax(self._engine.logits_after(ids, len(continuation_ids)))


SCORERS: Mapping[str, Callable[[Path, str], TeacherForcedModel] | None] = {
    "transformers": TransformersLogProbs,
    "ctranslate2": CTranslate2LogProbs,
    "packed": PackedLogProbs,
    "fake": None,
}


def scorer(engine: str, folder: Path, compute_type: str) -> TeacherForcedModel | None:
    """The model of a folder as `TeacherForcedModel`; None for an engine without teacher forcing.

    compute_type: what the trial really ran in, e.g. "float32", "bfloat16", "int8_float32".
    """
    if engine not in SCORERS:
        raise ConfigError(f"unknown engine {engine!r}", f"known are {', '.join(SCORERS)}")
    open_model = SCORERS[engine]
    return None if open_model is None else open_model(folder, compute_type)


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
            "use a compute type with a wider range, e.g. bfloat16 or float32",
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


def _normalised(scores: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """log softmax over the last axis, in float64."""
    shifted = scores.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _joined(prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[int]:
    """Inputs that predict each continuation token: all ids but the last."""
    assert len(prompt_ids) > 0, "a row has at least one prompt token"
    assert len(continuation_ids) > 0, "a row has at least one continuation token"
    return [*prompt_ids, *continuation_ids[:-1]]


def _load_error(folder: Path, error: Exception) -> ModelError:
    reason = str(error).partition("\n")[0]
    return ModelError(
        f"cannot load {folder}: {reason}", "prepare the model again with packhorse prepare"
    )
