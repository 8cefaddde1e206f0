"""Fields of requests that say what an answer must match.

- OpenAI's `response_format`: `{"type": "json_object"}` or `{"type": "json_schema", "json_schema":
  {"name": ..., "schema": ..., "strict": ...}}`;
- vLLM's `structured_outputs`: an object with one of `json`, `regex`, `choice`, `grammar` and
  `json_object`;
- their former names in vLLM: `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from packhorse.openai_format.row_errors import RowError, format_value
from packhorse.params.structured_output import StructuredOutput, StructureKind, structured_output

_KINDS: dict[str, StructureKind] = {
    "json": "json_schema",
    "json_object": "json_object",
    "regex": "regex",
    "choice": "choices",
    "grammar": "grammar",
}
"""Names in vLLM's requests -> kinds of structured outputs."""
_GUIDED = {f"guided_{name}": kind for name, kind in _KINDS.items() if name != "json_object"}
STRUCTURED_FIELDS = frozenset({"response_format", "structured_outputs", *_GUIDED})


def read_structured(fields: Mapping[str, Any]) -> StructuredOutput | None:
    """Return what the answer to a row or request must match, None if it says nothing.

    Raises:
        RowError: `bad_option` for a definition that cannot be used, and for two that differ.
    """
    found: dict[str, StructuredOutput] = {}
    for field, kind, value in _definitions(fields):
        try:
            found[field] = structured_output(kind, value)
        except ValueError as error:
            raise RowError("bad_option", f"{field}: {error}") from None
    if len(set(found.values())) > 1:
        raise RowError("bad_option", f"{' and '.join(found)} differ; keep one")
    return next(iter(found.values()), None)


def _definitions(fields: Mapping[str, Any]) -> Iterator[tuple[str, StructureKind, Any]]:
    """Yield the name, kind and value of each definition."""
    for field, value in fields.items():
        if value is None or field not in STRUCTURED_FIELDS:
            continue
        if field in _GUIDED:
            yield field, _GUIDED[field], value
        elif not isinstance(value, Mapping):
            raise RowError("bad_option", f"{field} must be an object, got {format_value(value)}")
        elif field == "response_format":
            yield from _response_format(value)
        else:
            yield from _structured_outputs(value)


def _response_format(value: Mapping[str, Any]) -> Iterator[tuple[str, StructureKind, Any]]:
    kind = value.get("type")
    if kind == "json_object":
        yield "response_format", "json_object", ""
    elif kind == "json_schema":
        inner = value.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if schema is None:
            raise RowError("bad_option", "response_format.json_schema.schema is missing")
        yield "response_format.json_schema.schema", "json_schema", schema
    elif kind != "text":
        raise RowError(
            "bad_option",
            "response_format.type must be text, json_object or json_schema, "
            f"got {format_value(kind)}",
        )


def _structured_outputs(value: Mapping[str, Any]) -> Iterator[tuple[str, StructureKind, Any]]:
    for name, definition in value.items():
        if definition is None or definition is False:
            continue
        if name not in _KINDS:
            raise RowError(
                "unsupported_option",
                f"structured_outputs.{name:.64} is not supported; leave it out",
            )
        yield f"structured_outputs.{name}", _KINDS[name], definition
