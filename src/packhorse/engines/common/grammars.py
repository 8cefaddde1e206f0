"""Masks of tokens that a structured output allows, for engines that choose tokens themselves.

llguidance computes a mask in about 50 microseconds, without Python's lock, in the thread that
computes the step.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packhorse.params.structured_output import StructuredOutput, llguidance_grammar
from packhorse.tokenization.loading import load_tokenizer

_KEPT = 64


class Grammars:
    """Compiled grammars of one model; threads may share it.

    Args:
        tokenizer_folder: Folder of the model's tokenizer, loaded when the first row needs it.
        end_ids: Tokens that end a row.
    """

    def __init__(self, tokenizer_folder: Path, end_ids: Collection[int]) -> None:
        self._folder = tokenizer_folder
        self._end_ids = sorted(end_ids)
        self._tokenizer: Any = None
        self._compiled: OrderedDict[StructuredOutput, Any] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, structured: StructuredOutput) -> GrammarState:
        """Return the state before the first token of an answer."""
        from llguidance import LLMatcher

        with self._lock:
            matcher = self._compiled.get(structured)
            if matcher is None:
                matcher = LLMatcher(self._load_tokenizer(), llguidance_grammar(structured))
                self._compiled[structured] = matcher
                if len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(structured)
            return GrammarState(matcher.deep_copy())

    def _load_tokenizer(self) -> Any:
        """Return llguidance's tokenizer; called with the lock."""
        if self._tokenizer is None:
            from llguidance import LLTokenizer

            backend: Any = load_tokenizer(self._folder)
            self._tokenizer = LLTokenizer(
                backend.backend_tokenizer.to_str(), eos_token=self._end_ids or None
            )
        return self._tokenizer


class GrammarState:
    """The tokens that one row may still take; its tokens only grow."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._num_taken = 0

    def mask(self, logits: Tensor, token_ids: Sequence[int]) -> None:
        """Set the logits of tokens that cannot lead to a match to -infinity, in place.

        All become -infinity if the grammar turns out to be too complex.

        Args:
            logits: [vocabulary] float32.
            token_ids: Tokens that were generated so far.
        """
        allowed = self._allowed(len(logits), token_ids)
        logits.masked_fill_(torch.from_numpy(~allowed).to(logits.device), -torch.inf)

    def best(self, logits: Tensor, token_ids: Sequence[int]) -> int | None:
        """Return the most probable token that can lead to a match; the first of equal ones.

        None if there is none, or if the logits are not finite. Arguments are those of `mask`, in
        any floating type; the logits are not changed.
        """
        candidates = np.flatnonzero(self._allowed(len(logits), token_ids))
        if not len(candidates):
            return None
        values = logits[torch.from_numpy(candidates).to(logits.device)]
        largest, place = values.max(dim=0)
        return int(candidates[int(place)]) if bool(largest.isfinite()) else None

    def _allowed(self, vocab_size: int, token_ids: Sequence[int]) -> NDArray[np.bool_]:
        """Return which tokens may follow; none if the grammar turns out to be too complex."""
        new = list(token_ids[self._num_taken :])
        self._num_taken += len(new)
        if new and not self._matcher.consume_tokens(new):
            return np.zeros(vocab_size, dtype=bool)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            return np.zeros(vocab_size, dtype=bool)
        return np.unpackbits(bits, count=vocab_size, bitorder="little").view(bool)
