"""A recipe: all that decides how a model is made ready for int8, as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

CODE = "quantization-1"
"""Changes whenever the same recipe would give another model."""

QUICK_ALPHAS: Mapping[str, Mapping[str, float]] = {
    "smooth": dict.fromkeys(("qkv", "o", "mlp", "down", "head"), 0.5),
    "rotate": {},
    "rotate-smooth": {"down": 0.3},
}
"""Method -> kind of site -> alpha, where no search has chosen one for each site. Only these kinds
are smoothed: after rotation no channel of the stream or of a head stands out, and smoothing there
was never better than none."""


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """Token ids of a prompt, and of what the model itself answers to it; () where nobody asked it.

    The distributions that matter are those before each token of the answer, or, without one, after
    each token of the prompt.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: all but the answer's last token."""
        return (*self.prompt, *self.answer[:-1])

    @property
    def first_scored(self) -> int:
        """Position in `inputs` of the first distribution that matters."""
        return len(self.prompt) - 1 if self.answer else 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is made ready; equal recipes make equal models.

    method: a name of `methods` that is no `auto`. seed: of the rotation. alphas: site name
    -> smoothing (0 where it is not named). rows: what the model reads while its activations are
    looked at.
    """

    method: str
    seed: int
    alphas: Mapping[str, float]
    rows: tuple[CalibrationRow, ...]

    @property
    def digest(self) -> str:
        return sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {
            "code": CODE,
            "method": self.method,
            "seed": self.seed,
            "alphas": dict(self.alphas),
            "rows": [[list(row.prompt), list(row.answer)] for row in self.rows],
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Recipe:
        """Raises KeyError, TypeError or ValueError for what `to_json` did not make."""
        if document["code"] != CODE:
            raise ValueError(f"made by {document['code']}, this is {CODE}")
        rows = [CalibrationRow(tuple(prompt), tuple(ans)) for prompt, ans in document["rows"]]
        return Recipe(document["method"], document["seed"], document["alphas"], tuple(rows))
