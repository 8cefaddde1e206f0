"""Turn pydantic's errors of a body into one error that names the wrong field and the reason.

If a field may have several types, pydantic tries each and reports the errors of all, with labels of
its types among the names of fields. The error to report is that of the best match: the one deepest
inside the value, and among those one that is not only about the type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

from packhorse.openai_format.row_errors import format_value
from packhorse.serve.errors import APIError

PydanticError = Mapping[str, Any]
_MAX_PARAM_CHARACTERS = 128
_TYPES = {
    "string_type": "text",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
}
"""Errors about the type of a value -> the expected type."""
_REASONS: dict[str, Callable[[Mapping[str, Any], Any], str]] = {
    "greater_than_equal": lambda context, _: f"must be at least {_bound(context['ge'])}",
    "greater_than": lambda context, _: f"must be above {_bound(context['gt'])}",
    "less_than_equal": lambda context, _: f"must be at most {_bound(context['le'])}",
    "less_than": lambda context, _: f"must be below {_bound(context['lt'])}",
    "finite_number": lambda _, __: "must be a finite number",
    "literal_error": lambda context, _: f"must be {context['expected']}",
}
"""Errors that show the value -> what it must be."""
_LENGTHS = {
    "string_too_short": ("at least", "min_length", "character"),
    "string_too_long": ("at most", "max_length", "character"),
    "too_short": ("at least", "min_length", "item"),
    "too_long": ("at most", "max_length", "item"),
}


def _bound(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def api_error_of(errors: Sequence[PydanticError], body: Any) -> APIError:
    """Return the error response for a request `body` that pydantic refuses with `errors`."""
    first = errors[0]
    if first["type"] == "json_invalid":
        place, reason = first["loc"][-1], str(first["ctx"]["error"])
        text = f"the body is not JSON: {reason[:1].lower()}{reason[1:]} at character {place}"
        return APIError(400, "invalid_json", text)
    found = [(*_place(error, body), error) for error in errors]
    start = found[0][0]
    same = [each for each in found if each[0][: len(start)] == start]
    deepest = max(len(place) for place, _, _ in same)
    best = [each for each in same if len(each[0]) == deepest]
    best = [each for each in best if each[2]["type"] not in _TYPES] or best
    place, is_name, _ = best[0]
    param = ".".join(map(str, place))[:_MAX_PARAM_CHARACTERS] or None
    subject = param or "the body"
    if is_name:
        subject = f"a name in {subject}"
    reason = _reason([each[2] for each in best if each[0] == place])
    return APIError(400, "invalid_request", f"{subject} {reason}", param=param)


def _place(error: PydanticError, body: Any) -> tuple[tuple[str | int, ...], bool]:
    """Return the path of an error in the body, and whether it is about the name of the last field.

    The path is without pydantic's labels of types. Usually the error is about the field's value.
    """
    place: list[str | int] = []
    value = body
    steps = list(error["loc"][1:])
    is_name = bool(steps) and steps[-1] == "[key]"
    if is_name:
        del steps[-2:]
    for number, step in enumerate(steps):
        is_last = number == len(steps) - 1
        is_field = isinstance(value, dict) and step in value
        is_item = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if is_last and error["type"] == "missing":
            place.append(step)
        elif is_field or is_item:
            place.append(step)
            value = value[step]
    return tuple(place), is_name


def _reason(errors: Sequence[PydanticError]) -> str:
    """Return what is wrong with the value at one place; if several types fit, all are named."""
    first = errors[0]
    kind, value, context = first["type"], first.get("input"), first.get("ctx", {})
    if kind == "missing":
        return "is missing" if first["loc"][1:] else "must be a JSON object"
    if kind == "extra_forbidden":
        return "is not supported; leave it out"
    if kind == "string_unicode":
        return "contains half of a surrogate pair, which is not a character"
    if kind in _TYPES:
        wanted = dict.fromkeys(_TYPES[each["type"]] for each in errors if each["type"] in _TYPES)
        return f"must be {' or '.join(wanted)}, got {format_value(value)}"
    if kind in _LENGTHS and isinstance(value, Sized):
        relation, name, unit = _LENGTHS[kind]
        bound, length = context[name], len(value)
        if not length:
            return "is empty"
        return f"must have {relation} {bound:,} {unit}{'s' * (bound != 1)}, got {length:,}"
    if kind in _REASONS:
        return f"{_REASONS[kind](context, value)}, got {format_value(value)}"
    return f"is refused: {first['msg']}"
