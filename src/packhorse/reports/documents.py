"""A report on disk: strict JSON that can be read back, and what is drawn from it."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from packhorse.atomic import atomic_file, make_folder
from packhorse.errors import InputError, OutputError

Document = TypeVar("Document")


def write_documents(folder: Path, writers: Mapping[str, Callable[[], str]]) -> list[Path]:
    """Writes a text under each name into `folder`, made if missing, and gives their paths.

    Each is whole or not there, in the order given: when a later one cannot be written, what stands
    before it is safe. Raises OutputError; files written before it stay.
    """
    make_folder(folder)
    written: list[Path] = []
    for name, text in writers.items():
        path = folder / name
        try:
            with atomic_file(path) as file:
                file.write(text().encode("utf-8", errors="replace"))
        except OutputError as error:
            kept = ", ".join(str(done) for done in written)
            hint = f"{error.hint}; already written: {kept}" if kept else error.hint
            raise OutputError(str(error), hint) from error
        written.append(path)
    return written


def read_document(path: Path, kind: type[Document], format_number: int, verb: str) -> Document:
    """The dataclass `kind` from a report.json that `packhorse VERB` wrote.

    Fields this version does not know are skipped; null where a plain number belongs is NaN.
    Raises InputError for a file that cannot be read, is no such report, or has another format.
    """
    try:
        document = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}", "name a report.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no JSON document: {error}", f"name a report.json that {verb} wrote"
        ) from error
    if not isinstance(document, dict) or "format" not in document:
        raise InputError(f"{path} is no report", f"name a report.json that {verb} wrote")
    if document["format"] != format_number:
        raise InputError(
            f"{path} has format {document['format']!r}, this version reads format {format_number}",
            f"read it with the packhorse that wrote it, or run packhorse {verb} again",
        )
    try:
        decoded: Document = decode(kind, document, "report")
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}", f"run packhorse {verb} again") from error
    return decoded


def json_text(document: Any) -> str:
    """A dataclass as JSON, indented, ASCII only; NaN and infinity become null."""
    return json.dumps(_strict(asdict(document)), indent=1, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def decode(annotation: Any, value: Any, where: str) -> Any:
    """`value` of a JSON document as what `annotation` says; ValueError names the place."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return value
    if is_dataclass(annotation):
        return _decode_dataclass(annotation, value, where)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is Literal:
        return _expect(value in arguments, value, where)
    if origin is tuple:
        items = _expect(isinstance(value, list), value, where)
        return tuple(decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        items = _expect(isinstance(value, dict), value, where)
        return {key: decode(arguments[1], item, f"{where}.{key}") for key, item in items.items()}
    if annotation is float:
        number = _expect(value is None or type(value) in (int, float), value, where)
        return math.nan if number is None else float(number)
    return _expect(type(value) is annotation, value, where)


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    items = _expect(isinstance(value, dict), value, where)
    annotations = get_type_hints(kind)
    known = {}
    for field in fields(kind):
        if field.name in items:
            place = f"{where}.{field.name}"
            known[field.name] = decode(annotations[field.name], items[field.name], place)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where} has no {field.name}")
    return kind(**known)


def _decode_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in choices:
        return None
    exact = [choice for choice in choices if choice is type(value)]
    others = [choice for choice in choices if choice is not types.NoneType]
    return decode((exact or others)[0], value, where)


def _expect(holds: bool, value: Any, where: str) -> Any:
    if not holds:
        raise ValueError(f"{where} is {value!r:.60}")
    return value
