"""Log-probabilities of continuations, and logits of given texts, in a transformers model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from packhorse.engines.transformers.batch_rule import BatchRule, forget_rows
from packhorse.engines.transformers.padded_batch import PaddedBatch
from packhorse.engines.transformers.prefix_states import PrefixState

PROMPT_LOGIT_BYTES = 256 << 20
"""Logits of a prompt that are computed at once."""


def continuation_log_probs(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    prefix: PrefixState | None = None,
) -> Tensor:
    """Return the natural log p(continuation | sequence), float64: [sequences, continuations].

    The prompts are computed once, and each continuation is computed from their state. A model that
    cannot drop positions (sliding windows, recurrent states) recomputes prompt and continuation for
    each continuation of more than one token.

    Args:
        sequences, continuations: token ids, none empty.
        prefix: as in `PaddedBatch`.
    """
    batch = PaddedBatch(model, sequences, pad_id=0, prefix=prefix)
    first = _log_probs(batch.prefill())
    columns = []
    for ids in continuations:
        total = first[:, ids[0]]
        if len(ids) > 1:
            if batch.can_look_ahead:
                following = batch.look_ahead(ids[:-1])
            else:
                whole = [[*sequence, *ids[:-1]] for sequence in sequences]
                following = PaddedBatch(model, whole, pad_id=0).last_logits(len(ids) - 1)
            places = torch.tensor(ids[1:], device=first.device)
            total = total + _log_probs(following)[:, torch.arange(len(places)), places].sum(dim=1)
        columns.append(total)
    return torch.stack(columns, dim=1)


def stepped_log_probs(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    rule: BatchRule,
) -> Tensor:
    """Return what `continuation_log_probs` does, computed token by token as in generation.

    For rows that a continuation takes past the trained length. All sequences have the same length.
    """
    columns = []
    for ids in continuations:
        batch = PaddedBatch(model, sequences, pad_id=0)
        logits, total = batch.prefill(), torch.zeros(len(sequences), dtype=torch.float64)
        for place, token_id in enumerate(ids):
            total = total.to(logits.device) + _log_probs(logits)[:, token_id]
            tokens = len(sequences[0]) + place + 1
            if place == len(ids) - 1:
                break
            if rule.restarts and rule.is_beyond(tokens) and not rule.is_beyond(tokens - 1):
                begun = [[*sequence, *ids[: place + 1]] for sequence in sequences]
                batch = PaddedBatch(model, begun, pad_id=0)
                logits = batch.prefill()
            else:
                logits = batch.step([token_id] * len(sequences))
        columns.append(total)
    return torch.stack(columns, dim=1)


def logits_after(
    model: PreTrainedModel, token_ids: Sequence[int], count: int
) -> NDArray[np.float32]:
    """Return the logits [count, vocabulary] after each of the last `count` of `token_ids`."""
    forward: Any = model
    keeps = "logits_to_keep" in inspect.signature(forward.forward).parameters
    options = {"logits_to_keep": count} if keeps else {}
    with torch.inference_mode():
        ids = torch.tensor([list(token_ids)], device=model.device)
        logits: Tensor = forward(ids, use_cache=False, **options).logits
        found: NDArray[np.float32] = logits[0, -count:].float().cpu().numpy()
    return found


@torch.inference_mode()
def prompt_logits(
    model: PreTrainedModel, token_ids: Sequence[int], vocabulary: int
) -> Iterator[NDArray[np.float32]]:
    """Yield the logits [vocabulary] after each token of a prompt but the last.

    A pass over the prompt alone gives those of as many tokens as fit into PROMPT_LOGIT_BYTES, so a
    long prompt is computed several times; families whose output cannot be narrowed give all.
    """
    forward: Any = model
    keeps = "logits_to_keep" in inspect.signature(forward.forward).parameters
    count = len(token_ids) - 1
    at_once = max(1, PROMPT_LOGIT_BYTES // (vocabulary * 4)) if keeps else max(1, count)
    for first in range(0, count, at_once):
        places = torch.arange(first, min(count, first + at_once), device=model.device)
        forget_rows(model)
        ids = torch.tensor([list(token_ids)], device=model.device)
        options = {"logits_to_keep": places} if keeps else {}
        logits: Tensor = forward(ids, use_cache=False, **options).logits[0]
        for place in range(len(places)):
            yield logits[place].float().cpu().numpy()


def _log_probs(logits: Tensor) -> Tensor:
    """In float64: a sum over a large vocabulary in float32 is off by 1e-5."""
    return logits.double().log_softmax(dim=-1)
