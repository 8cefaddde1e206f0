"""A key/value cache that rows can leave and that is not copied at every step.

transformers' DynamicCache grows by concatenation. Here layers have spare capacity, a row that
leaves is replaced by the last one, and left padding that no row needs any more is excluded from
attention. Measured on SmolLM2-135M, 2 cores, milliseconds per step, against DynamicCache:
16 rows x 1,000 tokens 111 and 176, 32 x 500 134 and 189, 16 x 200 84 and 88, 1 x 200 no difference.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

SHARE_OF_GROWTH = 8
SMALLEST_GROWTH = 32
KEYS_AND_VALUES = "past_key_values"
STATE_NAMES = (KEYS_AND_VALUES, "cache_params", "state")
"""Arguments of `forward` that carry a model's state: a cache of keys and values, the states of
Mamba and xLSTM, those of RWKV."""


class RowLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, [rows, heads, positions, head size].

    `keys` and `values` are views of the part of two larger buffers that is in use: their first
    rows, and positions from `_start` to `_end`. Buffers grow by an eighth of their length.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._start = 0
        self._end = 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append positions; return all keys and values in use."""
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        keys, values = self._room_for(key_states, value_states)
        rows, end = key_states.shape[0], self._end + key_states.shape[-2]
        keys[:rows, :, self._end : end] = key_states
        values[:rows, :, self._end : end] = value_states
        self._end = end
        return self._use(rows)

    def keep(self, moves: list[tuple[int, int]], rows: int) -> None:
        """Copy rows (from, to), then drop all but the first `rows`."""
        if self._buffers is None:
            return
        used = slice(self._start, self._end)
        for buffer in self._buffers:
            for source, target in moves:
                buffer[target, :, used] = buffer[source, :, used]
        self._use(rows)

    def trim(self, positions: int) -> None:
        """Drop the first `positions` of those in use."""
        if self.keys is not None:
            self._start += positions
            self._use(self.keys.shape[0])

    def retract(self, positions: int) -> None:
        """Drop the last `positions` of those in use."""
        if self.keys is not None:
            self._end -= positions
            self._use(self.keys.shape[0])

    def _use(self, rows: int) -> tuple[Tensor, Tensor]:
        assert self._buffers is not None
        used = slice(self._start, self._end)
        keys, values = (buffer[:rows, :, used] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values

    def _room_for(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the buffers, reallocated without unused positions if the new ones do not fit."""
        if self._buffers is not None and self._end + keys.shape[-2] <= self._buffers[0].shape[-2]:
            return self._buffers
        in_use = self._end - self._start
        positions = in_use + keys.shape[-2]
        capacity = positions + max(positions // SHARE_OF_GROWTH, SMALLEST_GROWTH)
        larger = (_empty(keys, capacity), _empty(values, capacity))
        if self.keys is not None and self.values is not None:
            larger[0][:, :, :in_use] = self.keys
            larger[1][:, :, :in_use] = self.values
        self._buffers, self._start, self._end = larger, 0, in_use
        return larger


def row_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return an empty cache for a model; other layers than plain attention are transformers'."""
    cache = DynamicCache(config=config)
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers = [RowLayer() for _ in cache.layers]
        if not cache.layers:
            cache.layer_class_to_replicate = RowLayer
    return cache


def state_name(accepted: Collection[str]) -> str:
    """Return the name of the parameter of `forward` that carries the state; "" if none."""
    return next((name for name in STATE_NAMES if name in accepted), "")


def keep_rows(state: Any, kept: list[int]) -> list[int]:
    """Drop all rows but `kept` (ascending); return them in their new order.

    state: what a forward pass returned under one of STATE_NAMES; it is changed in place.
    """
    if not isinstance(state, Cache):
        _keep_tensors(state if isinstance(state, list | dict) else vars(state), kept)
        return kept
    layers = _row_layers(state)
    if layers is None:
        state.reorder_cache(torch.LongTensor(kept))
        return kept
    rows = len(kept)
    free = sorted(set(range(rows)) - set(kept))
    moves = list(zip([row for row in kept if row >= rows], free, strict=True))
    order = list(range(rows))
    for source, target in moves:
        order[target] = source
    for layer in layers:
        layer.keep(moves, rows)
    return order


def trim_positions(cache: DynamicCache, positions: int) -> bool:
    """Drop the first positions of all rows; return False if the layers do not support it."""
    layers = _row_layers(cache)
    for layer in layers or []:
        layer.trim(positions)
    return layers is not None


def retract_positions(cache: DynamicCache, positions: int) -> None:
    """Drop the last positions of all rows. Only for a cache that `can_retract`."""
    for layer in _row_layers(cache) or []:
        layer.retract(positions)


def can_retract(cache: DynamicCache) -> bool:
    """Whether positions can be dropped: all layers are plain attention."""
    return _row_layers(cache) is not None


def position_bytes(state: Any) -> int:
    """Return the bytes of keys and values per position and row, without states of fixed size."""
    layers = state.layers if isinstance(state, Cache) else []
    held = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    tensors = [tensor for tensor in held if isinstance(tensor, Tensor)]
    return sum(tensor[0, :, 0].numel() * tensor.element_size() for tensor in tensors)


def fixed_bytes(state: Any) -> int:
    """Return the bytes per row of states whose size does not depend on the length."""
    if not isinstance(state, Cache):
        return _tensor_bytes(state if isinstance(state, list | dict) else vars(state))
    grows = {"keys", "values", "_buffers"}
    return sum(
        _tensor_bytes([value for name, value in vars(layer).items() if name not in grows])
        for layer in state.layers
    )


def _keep_tensors(held: Any, kept: list[int]) -> None:
    """Keep the rows of all tensors in a nested list or dict; dimension 0 is the rows."""
    places = held.items() if isinstance(held, dict) else enumerate(held)
    for place, value in list(places):
        if isinstance(value, Tensor):
            if value.dim() > 1:
                held[place] = value[kept]
        elif isinstance(value, list | dict):
            _keep_tensors(value, kept)
        elif isinstance(value, tuple):
            listed = list(value)
            _keep_tensors(listed, kept)
            held[place] = tuple(listed)


def _tensor_bytes(held: Any) -> int:
    if isinstance(held, Tensor):
        return held.numel() * held.element_size()
    if isinstance(held, dict):
        held = held.values()
    elif not isinstance(held, list | tuple):
        return 0
    return sum(map(_tensor_bytes, held))


def _row_layers(cache: Cache) -> list[RowLayer] | None:
    """Return the layers if all are plain attention."""
    layers = [layer for layer in cache.layers if isinstance(layer, RowLayer)]
    return layers if len(layers) == len(cache.layers) else None


def _empty(like: Tensor, positions: int) -> Tensor:
    rows, heads, _, size = like.shape
    return like.new_empty((rows, heads, positions, size))
