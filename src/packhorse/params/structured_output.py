"""What an answer must match: a JSON schema, a regular expression, choices or a grammar.

The grammars are those of llguidance (https://github.com/guidance-ai/llguidance); an engine that
chooses tokens itself takes only tokens that can still lead to a match
(`packhorse.engines.common.grammars`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

StructureKind = Literal["json_object", "json_schema", "regex", "choices", "grammar"]
JSON_KINDS = ("json_object", "json_schema")
MAX_CHARACTERS = 1 << 18
"""Longest schema, expression, list of choices or grammar: a client decides on it."""
_WHITESPACE = r"[\x20\x0A\x0D\x09]{0,40}"
"""Whitespace between the parts of JSON; without an end, a small model may write nothing else."""


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """What an answer must match.

    Attributes:
        kind: Kind of the definition.
        definition: A JSON schema as JSON (its properties are written in this order), a regular
            expression in the syntax of Rust's regex crate, a JSON list of choices, or a Lark
            grammar in llguidance's dialect; "" for any JSON object. In a regular
            expression, \\d is [0-9].
    """

    kind: StructureKind
    definition: str = ""

    @property
    def is_json(self) -> bool:
        """Whether answers are JSON documents."""
        return self.kind in JSON_KINDS


def structured_output(kind: StructureKind, value: Any = "") -> StructuredOutput:
    """Return the structured output of a definition, whose shape is checked.

    Args:
        kind: Kind of the definition.
        value: A schema (a mapping, JSON text or a class of pydantic), a text, or a list of choices.

    Raises:
        ValueError: The definition cannot be used; the text says why.
    """
    if kind == "json_object":
        return StructuredOutput(kind)
    if kind == "json_schema":
        definition = _schema_text(value)
    elif kind == "choices":
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if not is_list or not value or not all(isinstance(each, str) and each for each in value):
            raise ValueError("choices must be a list of texts, none of them empty")
        definition = json.dumps(list(value), ensure_ascii=False)
    else:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"a {'regular expression' if kind == 'regex' else kind} must be text")
        definition = value
    if len(definition) > MAX_CHARACTERS:
        raise ValueError(
            f"it has {len(definition):,} characters, and at most {MAX_CHARACTERS:,} are allowed"
        )
    found = StructuredOutput(kind, definition)
    if fault := _fault(found):
        raise ValueError(fault)
    return found


def _schema_text(value: Any) -> str:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"the JSON schema is no JSON: {error}") from error
    elif callable(of_class := getattr(value, "model_json_schema", None)):
        value = of_class()
    if not isinstance(value, Mapping):
        raise ValueError("a JSON schema must be an object")
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the JSON schema cannot be written as JSON: {error}") from error


def llguidance_grammar(structured: StructuredOutput) -> str:
    """Return the grammar of a structured output in llguidance's own format."""
    from llguidance import LLMatcher

    kind, definition = structured.kind, structured.definition
    if kind in JSON_KINDS:
        schema = definition or '{"type": "object"}'
        # "x-guidance" in a schema could relax the rules: these options come last.
        return LLMatcher.grammar_from_json_schema(
            schema,
            overrides={
                "whitespace_pattern": _WHITESPACE, "lenient": False, "coerce_one_of": False,
            },
        )  # fmt: skip
    if kind == "regex":
        return LLMatcher.grammar_from_regex(_with_ascii_digits(definition))
    if kind == "choices":
        choices = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(definition))
        return LLMatcher.grammar_from_lark("start: " + " | ".join(choices))
    return LLMatcher.grammar_from_lark(definition)


def _with_ascii_digits(expression: str) -> str:
    """Return a regular expression with [0-9] for \\d, which would allow digits of all scripts."""
    parts: list[str] = []
    is_class, rest = False, iter(expression)
    for character in rest:
        if character == "\\":
            escaped = next(rest, "")
            is_digit = escaped == "d"
            parts.append(("0-9" if is_class else "[0-9]") if is_digit else character + escaped)
            continue
        is_class = character == "[" or (is_class and character != "]")
        parts.append(character)
    return "".join(parts)


@lru_cache(maxsize=1024)
def _fault(structured: StructuredOutput) -> str:
    """Return why a structured output cannot be compiled; "" if it can.

    llguidance names the keyword: `Unimplemented keys: ["not"]`.
    """
    from llguidance import LLMatcher

    try:
        message = LLMatcher.validate_grammar(llguidance_grammar(structured))
    except (ValueError, RecursionError) as error:
        message = str(error)
    if not message or message.startswith("WARNING"):
        return ""
    return " ".join(message.split())[:400]


COLUMN_TYPES = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool"}
"""Types of JSON schemas -> types of columns; properties of other types are columns of JSON text."""


def property_types(structured: StructuredOutput) -> dict[str, str]:
    """Return the top-level properties of a JSON schema, and the types of their columns.

    Types are those of COLUMN_TYPES or "json"; properties that may be null have the type of their
    other values. Empty for other structured outputs and schemas without properties.
    """
    schema = json.loads(structured.definition or "{}") if structured.is_json else {}
    root = _resolved(schema, schema)
    properties = root.get("properties", {})
    if not isinstance(properties, dict):
        return {}
    return {name: _column_type(each, schema) for name, each in properties.items()}


def _column_type(schema: Any, root: Mapping[str, Any]) -> str:
    schema = _resolved(schema, root)
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(alternatives, list):
        found = {_column_type(each, root) for each in alternatives} - {"null"}
        return found.pop() if len(found) == 1 else "json"
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        names = {bool: "boolean", int: "integer", float: "number", str: "string"}
        kinds = {names.get(type(each), "") for each in values if each is not None}
    else:
        kind = schema.get("type")
        kinds = set(kind if isinstance(kind, list) else [kind]) - {"null"}
        if kind == "null":
            return "null"
    return COLUMN_TYPES.get(kinds.pop(), "json") if len(kinds) == 1 else "json"


def _resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema after its local references."""
    for _ in range(_MAX_REFERENCES):
        if not isinstance(schema, dict):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return schema
        target: Any = root
        for name in reference[1:].split("/")[1:]:
            key = name.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if isinstance(target, dict) else None
        schema = target
    return {}


_MAX_REFERENCES = 32
