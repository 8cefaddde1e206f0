"""`--template "Summarise: {text}"`: a prompt built from the fields of its row."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from typing import Any

from packhorse.errors import ConfigError
from packhorse.openai_format.row_errors import RowError, shown

_HINT = "a template is text with {column} in it; a brace that is meant is written {{ or }}"


@dataclass(frozen=True, slots=True)
class Template:
    """Literal text and names of fields in turn. Only `parse` makes one.

    Fields are looked up by name and nothing else: no attribute, index, conversion or format is
    followed, so that neither a template nor a row can reach into objects.
    """

    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Raises ConfigError for anything but text, {name}, {{ and }}, or without any name."""
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ConfigError(f"the template cannot be read: {error}", _HINT) from error
        for _, name, format_spec, conversion in parsed:
            if name is None:
                continue
            if not name.strip() or format_spec or conversion or set(name) & set(".[]{}"):
                raise ConfigError(f"the template holds {{{name}...}}, no plain name", _HINT)
        template = cls(tuple((literal, name) for literal, name, _, _ in parsed))
        if not template.names:
            raise ConfigError("the template names no field, so all prompts would be equal", _HINT)
        return template

    @property
    def names(self) -> tuple[str, ...]:
        """The fields it needs, each once, in order."""
        return tuple(dict.fromkeys(name for _, name in self.pieces if name is not None))

    def render(self, fields: Mapping[str, Any]) -> str:
        """Raises RowError for a field that is missing or no single value, or if all are blank."""
        values = {name: text_of(_present(fields, name), name) for name in self.names}
        if not any(value.strip() for value in values.values()):
            raise RowError("empty_prompt", "all fields of the template are blank; fill one")
        return "".join(
            literal + ("" if name is None else values[name]) for literal, name in self.pieces
        )


def _present(fields: Mapping[str, Any], name: str) -> Any:
    value = fields.get(name)
    if value is None:
        what = f"{shown(name)} is null" if name in fields else f"the row has no {shown(name)}"
        raise RowError("missing_field", f"{what}, but the template needs it; give it a value")
    return value


def text_of(value: Any, name: str) -> str:
    """A single value as text; RowError for lists, objects, NaN and infinity."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return shown(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, (int, date, time)):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    raise RowError(
        "bad_field", f"{shown(name)} must be text or a number for the template, got {shown(value)}"
    )
