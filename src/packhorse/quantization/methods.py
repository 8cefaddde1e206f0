"""How a model is made ready for int8, by name, and which families of models it works for.

    plain           not at all: CTranslate2's own conversion
    smooth          outliers of activations move into weights              (smoothing.py)
    rotate          outliers are spread over all channels                  (rotation.py)
    rotate-smooth   both: rotation first, smoothing where it cannot reach

All but `plain` also choose the rounding of each weight by what it does to outputs (rounding.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from packhorse.config import QUANTIZATION_METHODS
from packhorse.errors import ConfigError

AUTO, PLAIN = "auto", "plain"

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "llama": ("smooth", "rotate", "rotate-smooth"),
    "mistral": ("smooth", "rotate", "rotate-smooth"),
    "qwen2": ("smooth", "rotate", "rotate-smooth"),
    "qwen3": ("smooth", "rotate", "rotate-smooth"),
    "gpt2": ("smooth",),
}
"""Model types of transformers that can be made ready, the best method last."""


def methods_for(family: str, asked: str) -> tuple[str, ...]:
    """The methods that `asked` allows for a family, the best last; () where only plain is left.

    Raises ConfigError for one named that the family cannot have.
    """
    known = FAMILIES.get(family, ())
    if asked == AUTO:
        return known
    if asked == PLAIN:
        return ()
    if asked in known:
        return (asked,)
    others = ", ".join((PLAIN, *known))
    raise ConfigError(
        f"{family} models cannot be quantized by {asked}", f"for this family: auto, {others}"
    )


def require_known(method: str) -> None:
    """ConfigError for what is no name of a method."""
    if method not in QUANTIZATION_METHODS:
        raise ConfigError(
            f"there is no quantization method {method!r}",
            f"one of {', '.join(QUANTIZATION_METHODS)}",
        )
