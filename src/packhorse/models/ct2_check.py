"""Compare the logits of a CTranslate2 generator with those of the original model, and with its own.

A text is computed in one pass (prefill), and its last tokens are computed step by step after a
static prompt, which is how rows are generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np

from packhorse.errors import ModelError
from packhorse.models.reference_logits import (
    EXACT,
    Floats,
    Tolerance,
    are_near,
    check_text,
    read_reference,
)

ROUNDED_WEIGHTS = Tolerance(largest=np.inf, typical=0.25)
"""For weights of 8 or 16 bits computed in float32: rounding causes at most 0.03; the loss of a
layer's experts or of per-layer embeddings causes 0.5."""
ROUNDED_ACTIVATIONS = Tolerance(largest=np.inf, typical=0.9)
"""For activations of 8 bits: outliers of a model cause large differences in a usable model."""
STEPPED_TOKENS = 4
"""Tokens at the end of a text that are computed step by step."""
_EXACT_TYPES = ("float32",)


def require_same_logits(
    generator: Any, folder: Path, names: Sequence[str], window: int, stored: str, context: int = 0
) -> None:
    """Check a generator against the reference logits, and its prefill against its steps.

    Args:
        generator: A CTranslate2 generator.
        folder: Its folder, with or without reference logits.
        names: Tokens by id.
        window: Number of tokens that prefill computes correctly, 0 for all.
        stored: Number format of the weights.
        context: Maximum length of a text if the folder has no reference logits (tokens).

    Raises:
        ModelError: The logits differ by more than rounding, or are not finite.
    """
    reference = read_reference(folder)
    if reference is not None and max(reference.token_ids, default=0) < len(names):
        text = reference.token_ids
    else:
        reference, text = None, check_text(len(names), context or len(names), window)
    at_once = text[:window] if window else text
    first = max(1, len(at_once) - STEPPED_TOKENS)
    whole = logits_at_once(generator, at_once)
    stepped = logits_in_steps(generator, [names[token] for token in text], first)
    if not (np.isfinite(whole).all() and np.isfinite(stepped).all()):
        raise ModelError(
            f"{folder} computes logits of NaN or infinity",
            "the weights are damaged, or overflow in this number format: try float32",
        )
    computes_exactly = generator.compute_type in _EXACT_TYPES and generator.device == "cpu"
    by_type = EXACT if computes_exactly else ROUNDED_ACTIVATIONS
    shared = min(len(whole) - first, len(stepped))
    if shared > 0 and not are_near(stepped[:shared], whole[first : first + shared], by_type):
        raise ModelError(
            f"CTranslate2 computes other logits for the prompt in {folder} than for the same "
            "tokens one after the other",
            "use --engine transformers with the model it was made from",
        )
    if reference is None:
        return
    tolerance = ROUNDED_WEIGHTS if by_type is EXACT and stored != "float32" else by_type
    if reference.is_near(whole, 0, tolerance) and reference.is_near(stepped, first, tolerance):
        return
    what = "computes" if by_type is EXACT else f"computes in {generator.compute_type}"
    instead = "" if by_type is EXACT else "--quantization float32, or "
    raise ModelError(
        f"CTranslate2 {what} other logits from {folder} than the model it was made from",
        f"use {instead}--engine transformers with the model it was made from",
    )


def logits_at_once(generator: Any, token_ids: Sequence[int]) -> Floats:
    """Return logits [tokens, vocabulary] of a text computed in one pass."""
    (logits,) = _array(generator.forward_batch([list(token_ids)]))
    return np.asarray(logits)


def logits_in_steps(generator: Any, tokens: Sequence[str], first: int) -> Floats:
    """Return logits [tokens - first, vocabulary] of a text computed step by step from `first` on.

    Tokens before `first`, at least one, are computed in one pass.
    """
    (result,) = generator.generate_batch(
        [list(tokens[first:])],
        static_prompt=list(tokens[:first]),
        cache_static_prompt=False,
        max_length=len(tokens) - first,
        include_prompt_in_result=True,
        return_logits_vocab=True,
        sampling_topk=1,
        end_token=[],
    )
    return np.stack([_array(step).reshape(-1) for step in result.logits[0]])


def _array(storage: Any) -> Floats:
    on_cpu = storage.to_device(ctranslate2.Device.cpu).to(ctranslate2.DataType.float32)
    return np.array(on_cpu, dtype=np.float32)
