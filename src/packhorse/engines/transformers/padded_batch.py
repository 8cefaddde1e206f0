"""Rows of one batch inside a transformers model: left padding, positions and the cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from packhorse.engines.transformers.batch_rule import forget_rows
from packhorse.engines.transformers.prefix_states import PrefixState
from packhorse.engines.transformers.row_cache import (
    KEYS_AND_VALUES,
    can_retract,
    fixed_bytes,
    keep_rows,
    position_bytes,
    retract_positions,
    row_cache,
    state_name,
    trim_positions,
)


class PaddedBatch:
    """Computes the logits of every row's next token, step by step.

    Rows are padded on the left to the longest. Positions count a row's own tokens from 0, for
    rotary and for learned absolute positions alike; padding is masked from attention, so a row's
    logits are those it has alone, up to the rounding of sums. Where that is not so, rows that may
    share a batch are chosen by the model's `BatchRule`.

    model: in evaluation mode. sequences: token ids of each row, at least one. pad_id: any id of
    the vocabulary. prefix: the state after leading tokens that all sequences have in common and go
    beyond; padding then stands between them and a row's own tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sequences: Sequence[Sequence[int]],
        pad_id: int,
        prefix: PrefixState | None = None,
    ) -> None:
        self._model = model
        self._accepted = inspect.signature(model.forward).parameters
        self._state_name = state_name(self._accepted)
        self._has_cache = self._state_name == KEYS_AND_VALUES
        cache = row_cache(model.config) if self._has_cache else None
        self._state: Any = cache
        shared = len(prefix.token_ids) if prefix else 0
        sequences = [ids[shared:] for ids in sequences]
        width = max(map(len, sequences))
        padding = torch.tensor([[width - len(ids)] for ids in sequences])
        ids = [[pad_id] * (width - len(ids)) + list(ids) for ids in sequences]
        places = torch.arange(width)[None, :]
        self._token_ids = torch.tensor(ids).to(model.device)
        self._mask = (places >= padding).long().to(model.device)
        self._positions = (shared + (places - padding).clamp(min=0)).to(model.device)
        if prefix is not None and cache is not None:
            rows = len(sequences)
            self._mask = torch.cat([self._mask.new_ones(rows, shared), self._mask], dim=1)
            for number, (keys, values) in enumerate(prefix.layers):
                whole = (rows, *keys.shape[1:])
                cache.update(keys.expand(whole), values.expand(whole), number)

    @torch.inference_mode()
    def prefill(self) -> Tensor:
        """Logits [rows, vocabulary] of each row's first new token."""
        forget_rows(self._model)
        return self._logits(self._token_ids, self._positions)[:, -1]

    @torch.inference_mode()
    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Appends one token to each row; logits [rows, vocabulary] of the one after it."""
        ids = torch.tensor(token_ids, device=self._mask.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._positions = self._positions[:, -1:] + 1
        return self._logits(ids, self._positions)[:, -1]

    @torch.inference_mode()
    def last_logits(self, count: int) -> Tensor:
        """As `prefill`, but after each of the last tokens: [rows, count, vocabulary]."""
        forget_rows(self._model)
        return self._logits(self._token_ids, self._positions, keep=count)

    @property
    def can_look_ahead(self) -> bool:
        """Whether `look_ahead` works: the model's layers are plain attention."""
        return self._has_cache and can_retract(self._state)

    @torch.inference_mode()
    def look_ahead(self, token_ids: Sequence[int]) -> Tensor:
        """Logits [rows, tokens, vocabulary] after each of these tokens, were they appended to every
        row; the rows stay as they are."""
        count, rows = len(token_ids), len(self._mask)
        mask, ids = self._mask, torch.tensor([token_ids] * rows, device=self._mask.device)
        self._mask = torch.cat([mask, mask.new_ones(rows, count)], dim=1)
        ahead = torch.arange(1, count + 1, device=mask.device)[None, :]
        try:
            return self._logits(ids, self._positions[:, -1:] + ahead, keep=count)
        finally:
            self._mask = mask
            retract_positions(self._state, count)

    @torch.inference_mode()
    def keep(self, rows: list[int]) -> list[int]:
        """Lets all rows but these leave (ascending numbers); returns the order they now have."""
        order = keep_rows(self._state, rows)
        self._mask = self._mask[order]
        self._positions = self._positions[order]
        padding = int(self._mask.argmax(dim=1).min())
        counts = self._has_cache and "position_ids" in self._accepted
        if padding and counts and trim_positions(self._state, padding):
            self._mask = self._mask[:, padding:]
        return order

    @property
    def position_bytes(self) -> int:
        """Bytes of cache that one position of one row takes, once there is one."""
        return position_bytes(self._state)

    @property
    def fixed_bytes(self) -> int:
        """Bytes of state that a row takes whatever its length, of a batch of one row."""
        return fixed_bytes(self._state)

    def _logits(self, token_ids: Tensor, positions: Tensor, keep: int = 1) -> Tensor:
        """Logits [rows, keep, vocabulary] after the last `keep` tokens."""
        # a cache of keys is masked whole, a state by what goes into it now
        mask = self._mask if self._has_cache else self._mask[:, -token_ids.shape[1] :]
        options: dict[str, Any] = {
            "position_ids": positions,
            "logits_to_keep": keep,
            self._state_name: self._state,
        }
        output = self._model(
            input_ids=token_ids,
            attention_mask=mask,
            use_cache=True,
            **{name: value for name, value in options.items() if name in self._accepted},
        )
        if not self._has_cache:
            self._state = output[self._state_name]
        logits: Tensor = output.logits[:, -keep:]
        return logits
