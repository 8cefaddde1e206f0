"""Settings of a model that matter beyond a number of tokens: windows, chunks, sparse attention.

A check of a few tokens does not reach such a threshold, so it is lowered in the model itself for as
long as the check takes. A model reads its settings from its config and from attributes of its
layers; both are set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

_KIND = re.compile(r"window|chunk|floor|topk|block|local_attention")
_OTHER = re.compile(
    r"(mamba_)?chunk_size|block_size|max_window_layers|topk_group|block_multiple_of"
    r"|.*(moe|feed_forward|inference).*"
)
"""Settings named alike that count layers, experts or features, or only say how a recurrence is
computed."""


def thresholds(model: PreTrainedModel, above: int) -> dict[str, int]:
    """Settings by name that count tokens, of more than `above` tokens."""
    settings = {**model.config.to_dict(), **model.config.get_text_config().to_dict()}
    return {
        name: value
        for name, value in settings.items()
        if type(value) is int
        and value > above
        and _KIND.search(name)
        and not _OTHER.fullmatch(name)
    }


@contextmanager
def lowered(model: PreTrainedModel, settings: Mapping[str, int], to: int) -> Iterator[None]:
    """Gives a model's settings another value within the context."""
    before = list(_places(model, settings))
    try:
        for place, name, _ in before:
            place[name] = to
        yield
    finally:
        for place, name, value in before:
            place[name] = value


def _places(
    model: PreTrainedModel, settings: Mapping[str, int]
) -> Iterator[tuple[dict[str, Any], str, int]]:
    """Where settings are held: attributes of configs and modules, the name there, the value."""
    held: dict[int, dict[str, Any]] = {}
    for owner in (model.config, model.config.get_text_config(), *model.modules()):
        held[id(owner)] = vars(owner)
        if isinstance(config := vars(owner).get("config"), PreTrainedConfig):
            held[id(config)] = vars(config)
    wanted = {(_kind(name), value) for name, value in settings.items()}
    for attributes in held.values():
        for name, value in list(attributes.items()):
            if type(value) is int and (_kind(name), value) in wanted:
                yield attributes, name, value


def _kind(name: str) -> str:
    found = _KIND.search(name)
    return found[0] if found else ""
