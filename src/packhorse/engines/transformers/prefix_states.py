"""Prefix cache of a transformers model: keys and values of shared prefixes, for later batches."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from packhorse.engines.transformers.batch_rule import forget_rows
from packhorse.engines.transformers.row_cache import (
    KEYS_AND_VALUES,
    RowLayer,
    can_retract,
    row_cache,
)

KEPT_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PrefixState:
    """token_ids: the prefix. layers: keys and values of each layer, [1, heads, tokens, size]."""

    token_ids: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def size_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for pair in self.layers for each in pair)


class PrefixStates:
    """States of prefixes of one model; the least recently used are evicted above KEPT_BYTES.

    model: in evaluation mode. possible: whether it can go on from a state; it cannot with other
    than plain attention layers, nor if it counts positions by itself: then padding between a prefix
    and a row's own tokens would count.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        accepted = inspect.signature(model.forward).parameters
        has_cache = {"position_ids", KEYS_AND_VALUES} <= accepted.keys()
        is_plain = has_cache and can_retract(row_cache(model.config))
        self.possible = is_plain and not _has_own_window(model.config.get_text_config())
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._states: OrderedDict[tuple[int, ...], PrefixState] = OrderedDict()

    @torch.inference_mode()
    def of(self, token_ids: Sequence[int]) -> PrefixState | None:
        """Return the state after `token_ids`; None for no tokens or if it is not `possible`."""
        key = tuple(token_ids)
        if not key or not self.possible:
            return None
        if key in self._states:
            self._states.move_to_end(key)
            return self._states[key]
        state = self._compute(key)
        if state is None:
            self.possible = False
            return None
        self._states[key] = state
        while self._held() > KEPT_BYTES and len(self._states) > 1:
            self._states.popitem(last=False)
        return state

    def _held(self) -> int:
        return sum(state.size_bytes for state in self._states.values())

    def _compute(self, token_ids: tuple[int, ...]) -> PrefixState | None:
        """Compute the state; None for a model that does not keep its state in the given cache."""
        forget_rows(self._model)
        cache = row_cache(self._model.config)
        ids = torch.tensor([token_ids], device=self._model.device)
        self._model(input_ids=ids, past_key_values=cache, use_cache=True, **self._options)
        layers = []
        for layer in cache.layers:
            if not isinstance(layer, RowLayer) or layer.keys is None or layer.values is None:
                return None
            layers.append((layer.keys.clone(), layer.values.clone()))
        return PrefixState(token_ids, tuple(layers)) if layers else None


def _has_own_window(config: PreTrainedConfig) -> bool:
    """Whether layers with a plain attention cache have an attention window that they apply
    themselves, as those of GPT-Neo (`window_size`)."""
    return any(
        "window" in name and name != "max_window_layers" and type(value) is int and value > 0
        for name, value in config.to_dict().items()
    )
