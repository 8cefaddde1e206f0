"""Int8 quantization methods by name, and the model families that support each.

    plain           round to nearest: CTranslate2's own conversion
    smooth          SmoothQuant: move outliers of activations into weights    (smoothing.py)
    rotate          QuaRot: spread outliers over all channels                 (rotation.py)
    rotate-smooth   both: rotate, then smooth the input of the MLP's down projection

All but `plain` also round weights by GPTQ (gptq.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from packhorse import decoders
from packhorse.config import QUANTIZATION_METHODS
from packhorse.errors import ConfigError

AUTO, PLAIN = "auto", "plain"

FAMILIES: Mapping[str, tuple[str, ...]] = {
    name: family.methods for name, family in decoders.FAMILIES.items()
}
"""transformers' model type -> methods that support it, the best one last."""


def supported_methods(family: str, asked: str) -> tuple[str, ...]:
    """Return the methods that a request allows for a family, the best one last.

    Args:
        family: transformers' model type.
        asked: Name of a method, or "auto".

    Returns:
        Names of methods; () if only `plain` is left.

    Raises:
        ConfigError: The family does not support the requested method.
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
    """Raise ConfigError unless `method` is the name of a method."""
    if method not in QUANTIZATION_METHODS:
        raise ConfigError(
            f"there is no quantization method {method!r}",
            f"choose one of {', '.join(QUANTIZATION_METHODS)}",
        )
