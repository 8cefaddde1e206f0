"""Read JSON that another program wrote: bounded in size and depth, checked against types.

    read_json(path)                  any JSON document; one error for whatever is wrong with it
    read_object(path)                the same, for a document that must be an object
    parse_json(data)                 of bytes in memory; raises ValueError
    decode(annotation, value, ...)   a value as a dataclass, list, number, ...; raises ValueError

Everything that a file may hold instead of the expected document ends in one `PackhorseError` that
names the file, the key, what belongs there and what stands there.
"""

from __future__ import annotations

import json
import math
import os
import stat
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from packhorse.errors import ModelError, PackhorseError

MAX_BYTES = 64 << 20
MAX_DEPTH = 64
_SHOWN_CHARACTERS = 60
_AGAIN = "copy or fetch it again"
_POINTER = b"version https://git-lfs"
_KINDS: dict[type, str] = {
    dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a whole number",
    float: "a number", type(None): "null",
}  # fmt: skip


def read_json(
    path: Path,
    *,
    error: type[PackhorseError] = ModelError,
    hint: str = _AGAIN,
    max_bytes: int = MAX_BYTES,
    allow_nan: bool = True,
) -> Any:
    """Return the JSON document in a file.

    Args:
        path: A regular file in UTF-8.
        error: The class of what is raised.
        hint: What to do about a document that cannot be used.
        max_bytes: Size of the file at most (bytes).
        allow_nan: Accept NaN and Infinity, which Python's json writes and JSON does not know.

    Raises:
        `error`: The file cannot be read, is too large, is not JSON, is nested more than MAX_DEPTH
            levels deep, or gives one key two different values. FileNotFoundError is its cause if
            there is no such file.
    """
    try:
        data = _read_bytes(path, max_bytes)
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise error(f"{path} cannot be read: {reason}", "check the folder") from failure
    except ValueError as failure:
        raise error(f"{path} {failure}", hint) from failure
    if data.startswith(_POINTER):
        raise error(f"{path} is a Git LFS pointer, not the file itself", "run: git lfs pull")
    try:
        return parse_json(data, allow_nan=allow_nan)
    except ValueError as failure:
        raise error(f"{path} {failure}", hint) from failure


def read_object(path: Path, **options: Any) -> dict[str, Any]:
    """Return the JSON object in a file; options and errors are those of `read_json`."""
    document = read_json(path, **options)
    if not isinstance(document, dict):
        raise options.get("error", ModelError)(
            f"{path} must hold a JSON object, not {kind_of(document)}",
            options.get("hint", _AGAIN),
        )
    return document


def parse_json(data: bytes, *, allow_nan: bool = True, max_depth: int = MAX_DEPTH) -> Any:
    """Return the JSON document in `data`, or raise ValueError with a predicate that says what is
    wrong with it: "is not JSON: ...", "is not UTF-8: ...", "is nested more than 64 levels deep"."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: byte {error.start} is {data[error.start]:#04x}") from error
    if text.startswith("\ufeff"):
        raise ValueError("begins with a byte order mark, which JSON does not allow")
    constant = None if allow_nan else _refuse_constant
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=constant)
        _require_depth(document, max_depth)
    except RecursionError as error:
        raise ValueError(f"is nested more than {max_depth} levels deep") from error
    except MemoryError as error:
        raise ValueError("does not fit into memory") from error
    except _ContentError as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        reason = str(error).partition(";")[0]
        raise ValueError(f"is not JSON: {reason}" if text.strip() else "is empty") from error
    return document


def shown(value: Any) -> str:
    """`value` of a foreign document for a message: short, on one line, printable."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def kind_of(value: Any) -> str:
    """The JSON type of a value: "a list", "a whole number", ..."""
    return _KINDS.get(type(value), type(value).__name__)


def decode(annotation: Any, value: Any, where: str) -> Any:
    """Return `value` of a JSON document as what `annotation` says; ValueError names the place, what
    belongs there and what stands there.

    Known are Any, dataclasses and NamedTuples (fields that are not known are skipped),
    tuple[X, ...], list[X], dict[str, X], Literal, unions, str, int, bool and float (null is NaN).
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    require = partial(_require, annotation=annotation, value=value, where=where)
    if annotation is Any:
        return value
    if defaults := _record(annotation):
        return _decode_record(annotation, defaults, value, where)
    if origin in (Union, types.UnionType):
        return _decode_union(annotation, arguments, value, where)
    if origin is Literal:
        require(any(type(value) is type(each) and value == each for each in arguments))
        return value
    if origin in (tuple, list):
        require(isinstance(value, list))
        return origin(decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        require(isinstance(value, dict))
        return {key: decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if annotation is float:
        require(value is None or type(value) in (int, float))
        try:
            return math.nan if value is None else float(value)
        except OverflowError as error:
            raise ValueError(f"{where} is too large a number: {shown(value)}") from error
    require(type(value) is annotation)
    return value


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file; a pipe or a device would never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor has no path)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a regular file")
        if status.st_size > max_bytes:
            raise ValueError(f"has {status.st_size:,} bytes, more than the {max_bytes:,} allowed")
        return file.read(max_bytes + 1)


class _ContentError(Exception):
    """JSON whose content is refused."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that is there twice must have the same value twice, because parsers differ
    in which of the two they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        for key, value in pairs:
            if _differs(found[key], value):
                raise _ContentError(f"has two different values for {shown(key)}")
    return found


def _differs(one: Any, other: Any) -> bool:
    return type(one) is not type(other) or repr(one) != repr(other)


def _refuse_constant(name: str) -> None:
    raise _ContentError(f"holds {name}, which is not JSON")


def _require_depth(document: Any, limit: int) -> None:
    level = [document]
    for _ in range(limit + 1):
        nested = [each for each in level if isinstance(each, dict | list)]
        if not nested:
            return
        level = [
            item for each in nested for item in (each.values() if isinstance(each, dict) else each)
        ]
    raise _ContentError(f"is nested more than {limit} levels deep")


@cache
def _record(kind: Any) -> Mapping[str, bool]:
    """Whether each field may be left out, of a dataclass or NamedTuple; {} for other kinds."""
    if is_dataclass(kind):
        return {
            each.name: not (each.default is MISSING and each.default_factory is MISSING)
            for each in fields(kind)
        }
    defaults = getattr(kind, "_field_defaults", {})
    return {name: name in defaults for name in getattr(kind, "_fields", ())}


def _decode_record(kind: Any, optional: Mapping[str, bool], value: Any, where: str) -> Any:
    _require(isinstance(value, dict), kind, value, where)
    annotations = _hints(kind)
    known = {}
    for name, may_lack in optional.items():
        if name in value:
            known[name] = decode(annotations[name], value[name], f"{where}.{name}")
        elif not may_lack:
            raise ValueError(f"{where} has no {name}")
    return kind(**known)


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _decode_union(annotation: Any, choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in choices:
        return None
    exact = [choice for choice in choices if choice is type(value)]
    others = [choice for choice in choices if not isinstance(choice, type)]
    records = [choice for choice in choices if _record(choice)]
    numbers = [float] if float in choices and type(value) is int else []
    fitting = exact or numbers or [each for each in others if _fits(each, value)] or records
    _require(bool(fitting), annotation, value, where)
    return decode(fitting[0], value, where)


def _fits(choice: Any, value: Any) -> bool:
    """Whether a value may be a tuple, list, dict or Literal of this kind, its content aside."""
    origin = get_origin(choice)
    if origin is Literal:
        return value in get_args(choice)
    return isinstance(value, list if origin is tuple else origin)


def _require(holds: bool, annotation: Any, value: Any, where: str) -> None:
    if not holds:
        raise ValueError(f"{where} must be {_expected(annotation)}, got {shown(value)}")


def _expected(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(repr, get_args(annotation)))}"
    if _record(annotation):
        return "an object"
    if origin in (Union, types.UnionType):
        choices = [each for each in get_args(annotation) if each is not types.NoneType]
        return " or ".join(map(_expected, choices))
    return _KINDS[list if origin is tuple else origin or annotation]
