"""Types of the fields of requests: which JSON values they take, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packhorse.params.sampling_params import token_id_list


@dataclass(frozen=True, slots=True)
class NumberRange:
    """Type and range of a numeric field.

    Attributes:
        type: int, or float, which accepts integers too. A boolean is never a number.
        minimum: Smallest value.
        maximum: Largest value, included.
        excludes_minimum: Whether values must be above the minimum.
    """

    type: type[int] | type[float]
    minimum: int
    maximum: int
    excludes_minimum: bool = False

    def contains(self, value: float) -> bool:
        above = value > self.minimum if self.excludes_minimum else value >= self.minimum
        return above and value <= self.maximum

    def accepts(self, value: Any) -> bool:
        """Return whether a JSON value has the type and is in the range."""
        types = (int,) if self.type is int else (int, float)
        return isinstance(value, types) and not isinstance(value, bool) and self.contains(value)

    def convert(self, value: Any) -> int | float:
        return self.type(value)

    def __str__(self) -> str:
        kind = "an integer" if self.type is int else "a number"
        if self.excludes_minimum:
            return f"{kind} above {self.minimum} and at most {self.maximum}"
        return f"{kind} from {self.minimum} to {self.maximum}"


@dataclass(frozen=True, slots=True)
class StopStrings:
    """Type of `stop`: one string or a list of strings, none of them empty."""

    max_count: int

    def accepts(self, value: Any) -> bool:
        if isinstance(value, list):
            is_text = all(isinstance(each, str) and each for each in value)
            return len(value) <= self.max_count and is_text
        return isinstance(value, str) and bool(value)

    def convert(self, value: str | list[str]) -> tuple[str, ...]:
        return (value,) if isinstance(value, str) else tuple(value)

    def __str__(self) -> str:
        return f"text or a list of at most {self.max_count} texts, none of them empty"


@dataclass(frozen=True, slots=True)
class Flag:
    """Type of a field that is true or false."""

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)

    def convert(self, value: bool) -> bool:
        return value

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Type of a list of token ids; text with commas between them is read too (CSV)."""

    max_count: int

    def accepts(self, value: Any) -> bool:
        if isinstance(value, str):
            try:
                value = list(token_id_list(value))
            except ValueError:
                return False
        if not isinstance(value, list) or len(value) > self.max_count:
            return False
        return all(TOKEN_ID.accepts(each) for each in value)

    def convert(self, value: str | list[int]) -> tuple[int, ...]:
        return token_id_list(value) if isinstance(value, str) else tuple(value)

    def __str__(self) -> str:
        return f"a list of at most {self.max_count} token ids"


@dataclass(frozen=True, slots=True)
class LogitBias:
    """Type of `logit_bias`: an object of biases by token id, which JSON writes as text."""

    max_count: int

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, dict) or len(value) > self.max_count:
            return False
        return all(
            str(token).isdecimal() and TOKEN_ID.accepts(int(token)) and BIAS.accepts(bias)
            for token, bias in value.items()
        )

    def convert(self, value: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
        return tuple(sorted((int(token), float(bias)) for token, bias in value.items()))

    def __str__(self) -> str:
        return f"an object of at most {self.max_count} token ids and biases from -100 to 100"


FieldType = NumberRange | StopStrings | Flag | TokenIds | LogitBias

TOKEN_ID = NumberRange(int, 0, 2**31 - 1)
BIAS = NumberRange(float, -100, 100)
