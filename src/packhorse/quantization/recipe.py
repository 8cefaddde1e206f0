"""A recipe: everything that determines how a model is prepared for int8, as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

CODE = "quantization-1"
"""Version of the algorithms; changes if the same recipe would give another model."""

DEFAULT_ALPHAS: Mapping[str, Mapping[str, float]] = {
    "smooth": dict.fromkeys(("qkv", "o", "mlp", "down", "head"), 0.5),
    "rotate": {},
    "rotate-smooth": {"down": 0.3},
}
"""Method -> kind of linear group -> alpha, used if no search has chosen one for each group.

Only these kinds are smoothed: after rotation no channel of the residual stream or of a head is an
outlier, and smoothing them was never better than not smoothing."""


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """Token ids of a prompt and of the model's own answer to it, () if there is none.

    Scored are the distributions that predict the tokens of the answer or, without an answer, those
    after each token of the prompt.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[int, ...]:
        """Token ids that the model reads: all but the answer's last one."""
        return (*self.prompt, *self.answer[:-1])

    @property
    def first_scored(self) -> int:
        """Position in `inputs` of the first scored distribution."""
        return len(self.prompt) - 1 if self.answer else 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is prepared for int8; equal recipes give equal models.

    Attributes:
        method: Name of a method other than "auto".
        seed: Seed of the rotation's signs.
        alphas: Name of a linear group -> smoothing strength (SmoothQuant's alpha), default 0.
        rows: Calibration rows, over which activations are measured.
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
        """Return the recipe that `to_json` wrote; KeyError, TypeError or ValueError otherwise."""
        if document["code"] != CODE:
            raise ValueError(f"made by {document['code']}, this is {CODE}")
        rows = [CalibrationRow(tuple(prompt), tuple(ans)) for prompt, ans in document["rows"]]
        return Recipe(document["method"], document["seed"], document["alphas"], tuple(rows))
