"""Prompt templates: `--template "Summarise: {text}"` builds a prompt from the fields of a row."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from typing import Any

from packhorse.errors import ConfigError
from packhorse.openai_format.row_errors import RowError, format_value

_HINT = "a template is text with {column} in it; write a literal brace as {{ or }}"


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt template: literal text and names of fields, alternating.

    Fields are looked up by name only. Attributes, indexes, conversions and formats are not
    supported, so neither a template nor a row can access the inside of objects.
    """

    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Parse a template.

        Raises:
            ConfigError: For anything but text, {name}, {{ and }}, or if there is no name.
        """
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ConfigError(f"the template cannot be read: {error}", _HINT) from error
        for _, name, format_spec, conversion in parsed:
            if name is None:
                continue
            if not name.strip() or format_spec or conversion or set(name) & set(".[]{}"):
                raise ConfigError(
                    f"the template contains {{{name}...}}, which is not a plain name", _HINT
                )
        template = cls(tuple((literal, name) for literal, name, _, _ in parsed))
        if not template.names:
            raise ConfigError("the template names no field, so all prompts would be equal", _HINT)
        return template

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the fields that the template needs, each once, in order."""
        return tuple(dict.fromkeys(name for _, name in self.pieces if name is not None))

    def render(self, fields: Mapping[str, Any]) -> str:
        """Return the prompt of a row.

        Raises:
            RowError: `missing_field`, `bad_field` for a list or object, `empty_prompt` if all
                fields are blank.
        """
        values = {name: format_field(_present(fields, name), name) for name in self.names}
        if not any(value.strip() for value in values.values()):
            raise RowError("empty_prompt", "all fields of the template are blank; fill one")
        return "".join(
            literal + ("" if name is None else values[name]) for literal, name in self.pieces
        )


def _present(fields: Mapping[str, Any], name: str) -> Any:
    value = fields.get(name)
    if value is None:
        what = (
            f"{format_value(name)} is null"
            if name in fields
            else f"the row has no {format_value(name)}"
        )
        raise RowError("missing_field", f"{what}, but the template needs it; give it a value")
    return value


def format_field(value: Any, name: str) -> str:
    """Return a single value as text.

    Raises:
        RowError: `bad_field` for lists, objects, NaN and infinity.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return format_value(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, (int, date, time)):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    raise RowError(
        "bad_field",
        f"{format_value(name)} must be text or a number for the template, "
        f"got {format_value(value)}",
    )
