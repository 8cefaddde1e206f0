"""Compares what CTranslate2 computes with the model it was converted from, and with itself.

Two ways through a generator are compared: a text computed at once, and its last tokens one after
the other behind a static prompt, which is how rows are generated.
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
"""Of weights in 8 or 16 bits, computed in float32: honest rounding comes to 0.03 at most, a layer's
experts or per-layer embeddings that are lost to 0.5."""
ROUNDED_ACTIVATIONS = Tolerance(largest=np.inf, typical=0.9)
"""Of activations in 8 bits too: outliers of a model cost much, and its text is still its own."""
STEPPED_TOKENS = 4
"""Tokens at the end of a text that are computed one after the other."""
_EXACT_TYPES = ("float32",)


def require_same_logits(
    generator: Any, folder: Path, names: Sequence[str], window: int, stored: str, context: int = 0
) -> None:
    """ModelError where a generator does not compute what was converted, or does not compute the
    same at once and token by token.

    names: tokens by id. window: tokens that are computed right at once, 0 for all. stored: the
    format of the weights. context: tokens of a text at most, where the folder keeps no reference.
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
            f"{folder} computes no numbers, only NaN or infinity",
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
    """Logits [tokens, vocabulary] of a text that is computed at once."""
    (logits,) = _array(generator.forward_batch([list(token_ids)]))
    return np.asarray(logits)


def logits_in_steps(generator: Any, tokens: Sequence[str], first: int) -> Floats:
    """Logits [tokens - first, vocabulary] from token `first` on, one after the other; those before
    are computed at once. first: at least 1."""
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
