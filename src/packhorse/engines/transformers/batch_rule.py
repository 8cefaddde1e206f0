"""Which rows of a transformers model may be computed together.

Some rotary positions depend on the longest position of a forward pass (transformers,
`modeling_rope_utils.dynamic_rope_update`): LongRoPE takes its long factors beyond the trained
length, dynamic NTK scaling takes other frequencies for every length beyond it. A row that grows
past the trained length keeps the keys it has, unless `generate` of its family drops them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

_LAYER_STATES = ("conv1d_state", "recurrent_states")


@dataclass(frozen=True, slots=True)
class BatchRule:
    """Which rows may share a forward pass, so that each gets the logits it has alone.

    limit: the trained length (tokens), up to which all rows have the same frequencies; None if no
        position depends on the length of a batch.
    one_scale: beyond the limit all rows have the same other frequencies (LongRoPE); if False,
        every length has its own (dynamic NTK).
    restarts: `generate` computes a row anew when it grows past the limit.
    mixes_up_to: rows that may come to more tokens share a batch only with rows of the same length;
        None for no bound, 0 for every row.
    shares_up_to: rows that may come to more tokens share no batch; None and 0 likewise.
    """

    limit: int | None = None
    one_scale: bool = False
    restarts: bool = False
    mixes_up_to: int | None = None
    shares_up_to: int | None = None

    @property
    def same_length_above(self) -> int | None:
        """See `EngineCapabilities`."""
        limits = (None if self.one_scale else self.limit, self.mixes_up_to, self.shares_up_to)
        return min((each for each in limits if each is not None), default=None)

    @property
    def separate_above(self) -> int | None:
        """See `EngineCapabilities`."""
        return self.limit if self.one_scale else None

    def is_beyond(self, tokens: int) -> bool:
        """Whether a row of so many tokens exceeds the trained length."""
        return self.limit is not None and tokens > self.limit

    def prefill_tokens(self, prompt: int, tokens: int) -> int:
        """Leading tokens of a row that are computed at once when it starts or starts again; those
        after them were computed one by one, with other frequencies.

        prompt, tokens: of the row, without and with what it generated so far.
        """
        if self.limit is None or tokens <= self.limit:
            return tokens
        if self.one_scale and (self.restarts or prompt > self.limit):
            return tokens
        return max(prompt, self.limit)

    @property
    def alone(self) -> bool:
        """Whether every row needs a batch of its own."""
        return self.shares_up_to == 0

    def needs_own_batch(self, most: int) -> bool:
        """Whether a row that may come to so many tokens shares no batch."""
        return self.shares_up_to is not None and most > self.shares_up_to

    def group(self, prompt: int, tokens: int, most: int) -> tuple[int, int]:
        """What rows have in common that may share a batch from `tokens` on.

        prompt, tokens: of a row, without and with what it generated so far. most: tokens that it
        may come to.
        """
        at_once = self.prefill_tokens(prompt, tokens)
        if not self.is_beyond(tokens) or (self.one_scale and at_once == tokens):
            mixes = self.mixes_up_to is None or most <= self.mixes_up_to
            return int(self.is_beyond(tokens)), 0 if mixes else tokens
        return 1 + at_once, tokens

    def holds_prefix(self, prefix: int, tokens: int) -> bool:
        """Whether leading tokens computed alone are those of a row of so many tokens."""
        return not self.is_beyond(tokens) or (self.one_scale and self.is_beyond(prefix))


def batch_rule(model: PreTrainedModel) -> BatchRule:
    """The rule that follows from how a model's positions rotate; what the
    mask of a batch may change is left open."""
    limits: dict[str, set[int]] = {"longrope": set(), "dynamic": set()}
    config: Any = model.config.get_text_config()
    for rotation in _rotations(config):
        kind = str(rotation.get("rope_type", ""))
        if kind == "longrope":
            original = rotation.get("original_max_position_embeddings")
            limits[kind].add(int(original or config.max_position_embeddings))
        elif "dynamic" in kind:
            limits["dynamic"].add(int(config.max_position_embeddings))
    every = limits["longrope"] | limits["dynamic"]
    if not every:
        return BatchRule()
    limit = min(every)
    one_scale = len(every) == 1 and not limits["dynamic"]
    return BatchRule(limit, one_scale, _restarts(model, limit))


def forget_rows(model: PreTrainedModel) -> None:
    """Makes a model forget the rows that it has computed.

    With dynamic NTK scaling it keeps the frequencies of the longest row for shorter ones until it
    sees one below the trained length; RecurrentGemma keeps its states in its layers until it
    computes without a cache. So a row of a single token does both.
    """
    if remembers_rows(model):
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=False)


def remembers_rows(model: PreTrainedModel) -> bool:
    """Whether a model keeps something of the rows that it computed last, outside of a cache."""
    return any(map(_remembers, model.modules()))


def _remembers(module: torch.nn.Module) -> bool:
    if any(isinstance(vars(module).get(name), Tensor) for name in _LAYER_STATES):
        return True
    trained = getattr(module, "original_max_seq_len", None)
    if trained is None:
        return False
    held = (value for name, value in vars(module).items() if name.endswith("max_seq_len_cached"))
    return any(bool(value > trained) for value in held)


def _rotations(config: Any) -> Iterator[Mapping[str, Any]]:
    """Rotary settings of a config, those of each kind of layer where they differ."""
    settings = getattr(config, "rope_parameters", None)
    if not isinstance(settings, Mapping):
        return
    if "rope_type" in settings:
        yield settings
    yield from (each for each in settings.values() if isinstance(each, Mapping))


class _Filled(DynamicCache):
    """A cache that says it holds so many tokens."""

    def __init__(self, config: Any, tokens: int) -> None:
        super().__init__(config=config)
        self._tokens = tokens

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return self._tokens


def _restarts(model: PreTrainedModel, limit: int) -> bool:
    """Whether the model drops its cache in `generate` for the first token beyond the limit."""
    ids = torch.zeros((1, limit + 1), dtype=torch.long)
    given = _Filled(model.config, limit)
    prepared = model.prepare_inputs_for_generation(  # type: ignore[operator]
        input_ids=ids,
        past_key_values=given,
        attention_mask=torch.ones_like(ids),
        use_cache=True,
        next_sequence_length=1,
    )
    return prepared.get("past_key_values") is not given
