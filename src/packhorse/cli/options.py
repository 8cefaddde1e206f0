"""Command-line options derived from the fields of configs, which `packhorse.config` describes.

add(parser, JobConfig, "model", "input")     options of some fields, or of all that describe one
read(arguments, JobConfig)                   the config with what was given, nested ones included
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from packhorse.batching import AUTO, POLICIES
from packhorse.config import BatchingConfig, EngineConfig, InputConfig, OutputConfig
from packhorse.data import SamplingParams
from packhorse.engine_protocol.registry import BUILT_IN, engine_names, model_engines
from packhorse.params.prompt_options import PromptOptions
from packhorse.params.structured_output import StructuredOutput, structured_output

_Config = TypeVar("_Config")
_METAVARS = {int: "N", str: "TEXT", Path: "FILE"}


def add(parser: Any, config: type[Any], *names: str, **changes: Mapping[str, Any]) -> None:
    """Add the options of the named fields, in this order; of all that describe one by default.

    Args:
        parser: A parser or a group of one.
        config: The config, a dataclass.
        changes: By field name, what differs from the field's metadata. Fields that `names` lacks
            come last.
    """
    known = {each.name: each for each in fields(config)}
    described = [name for name, each in known.items() if "help" in each.metadata]
    types = get_type_hints(config)
    for name in dict.fromkeys((*(names or described), *changes)):
        field, kind = known[name], types[name]
        option = {**field.metadata, **changes.get(name, {})}
        keywords = {"help": _help(option, field, kind), **_value_keywords(option, kind, field)}
        destination = _destination(config, name)
        is_required = default_of(field) is MISSING
        if is_required and "flags" not in option:
            parser.add_argument(destination, **{**keywords, "metavar": name.upper()})
            continue
        prefix = "--no-" if field.default is True else "--"
        flags = option.get("flags", (f"{prefix}{name.replace('_', '-')}",))
        keywords |= {"dest": destination, "default": argparse.SUPPRESS}
        parser.add_argument(*flags, required=option.get("required", is_required), **keywords)
        if aliases := option.get("aliases"):
            parser.add_argument(*aliases, **{**keywords, "help": argparse.SUPPRESS})


def default_of(field: Field[Any]) -> Any:
    """Return the default of a config's field, MISSING if it must be given."""
    factory = field.default_factory
    return field.default if factory is MISSING else factory()


def read(arguments: argparse.Namespace, config: type[_Config], **values: Any) -> _Config:
    """Return the config with the options that were given; `values` go before them."""
    return config(**{**given(arguments, config), **values})


def given(arguments: argparse.Namespace, config: type[Any]) -> dict[str, Any]:
    """Return the fields of a config by name: those given as options, and its nested configs."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(config).items():
        value = getattr(arguments, _destination(config, name), MISSING)
        if value is not MISSING:
            collect = dict if get_origin(kind) is Mapping else tuple
            found[name] = collect(value) if isinstance(value, list) else value
        elif isinstance(kind, type) and is_dataclass(kind):
            found[name] = read(arguments, kind)
    return found


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as one JSON document on the last line of standard output",
    )


def add_engine(parser: argparse.ArgumentParser, config: type[Any]) -> None:
    """Add the options of the engine, and the config's `allow_pickle`."""
    group = parser.add_argument_group("engine")
    add(group, EngineConfig, engine={"type": engine, "metavar": engine_list(BUILT_IN)})
    add(group, config, "allow_pickle")


def add_batching(parser: Any, *names: str, **changes: Mapping[str, Any]) -> None:
    policy = {"choices": (AUTO, *POLICIES)}
    add(parser.add_argument_group("batching"), BatchingConfig, *names, policy=policy, **changes)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    title = "sampling (options of a row override these)"
    add(parser.add_argument_group(title), SamplingParams)
    group = parser.add_argument_group("structured outputs (those of a row override these)")
    exclusive = group.add_mutually_exclusive_group()
    destination = _destination(SamplingParams, "structured_outputs")
    for flag, read_value, metavar, described in (
        ("--json-schema", _read_schema, "SCHEMA",
         "answers are JSON that a schema allows: a file, or pydantic:MODULE:CLASS"),
        ("--regex", partial(structured_output, "regex"), "REGEX",
         "answers match a regular expression"),
        ("--choices", lambda given: structured_output("choices", names(given)), "A,B,C",
         "answers are one of these texts"),
        ("--grammar", lambda given: structured_output("grammar", _read_text(given)), "FILE",
         "answers match a Lark grammar"),
    ):  # fmt: skip
        exclusive.add_argument(
            flag, type=_argument(read_value), metavar=metavar, help=described, dest=destination,
            default=argparse.SUPPRESS,
        )  # fmt: skip


def add_input(parser: argparse.ArgumentParser, *names: str, **changes: Mapping[str, Any]) -> None:
    add(parser.add_argument_group("input"), InputConfig, *names, **changes)


def add_output(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the options of the columns of the output."""
    add(parser.add_argument_group("output"), OutputConfig, *names, keep={"type": columns})


def columns(given: str) -> str | tuple[str, ...]:
    """Return the value of --keep: a word, or names with commas between them, quoted as in CSV."""
    given = text(given)
    if given in ("auto", "all", "none"):
        return given
    names = tuple(filter(None, next(csv.reader([given]), [])))
    if not names:
        raise argparse.ArgumentTypeError("name columns, or say all or none")
    return names


def add_prompts(parser: argparse.ArgumentParser) -> None:
    title = "prompts (options of a row override these)"
    add(parser.add_argument_group(title), PromptOptions)


def engine(name: str) -> str:
    """The name of an engine on the command line. Imports none."""
    if name != "auto" and name not in BUILT_IN and name not in engine_names():
        known = ", ".join(("auto", *engine_names()))
        raise argparse.ArgumentTypeError(f"unknown engine {name!r} (known: {known})")
    return name


def engine_with_model(name: str) -> str:
    """The name of an engine that runs a model."""
    if name in BUILT_IN and name not in ("auto", *model_engines()):
        raise argparse.ArgumentTypeError(f"the engine {name!r} takes no model")
    return engine(name)


def engine_list(names: Sequence[str]) -> str:
    """Engines as argparse shows choices."""
    return f"{{{','.join(('auto', *names))}}}"


def text(given: str) -> str:
    """Return a text of the command line, whatever the locale.

    In an ASCII locale Python passes the bytes of UTF-8 as half surrogate pairs. Not for paths,
    which the operating system takes that way.
    """
    try:
        given.encode("utf-8")
    except UnicodeEncodeError:
        try:
            return os.fsencode(given).decode("utf-8")
        except UnicodeError:
            raise argparse.ArgumentTypeError(f"must be UTF-8 text, got {given!a}") from None
    return given


def names(given: str) -> tuple[str, ...]:
    """Return the items of a list with commas between them."""
    return tuple(name.strip() for name in given.split(",") if name.strip())


def _argument(read_value: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a type of argparse that shows the text of a ValueError."""

    def read_argument(given: str) -> Any:
        try:
            return read_value(text(given))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read_argument


def _read_schema(given: str) -> StructuredOutput:
    """Return the structured output of a file with a JSON schema, or of a class of pydantic."""
    if not given.startswith("pydantic:"):
        return structured_output("json_schema", _read_text(given))
    module, _, name = given.removeprefix("pydantic:").partition(":")
    sys.path.insert(0, str(Path.cwd()))  # the user's own module, as `python -m` does
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{given} cannot be imported: {error}") from error
    finally:
        sys.path.pop(0)
    return structured_output("json_schema", found)


def _read_text(given: str) -> str:
    try:
        return Path(given).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{given} cannot be read: {error.strerror}") from error


def _destination(config: type[Any], name: str) -> str:
    """Return the attribute of the namespace; fields of different configs may have one name."""
    return f"{config.__name__}.{name}"


def _value_keywords(option: Mapping[str, Any], kind: Any, field: Field[Any]) -> dict[str, Any]:
    """Return what `add_argument` is told about the value of an option."""
    if kind is bool:
        return {"action": "store_false" if field.default else "store_true"}
    kind = next((each for each in get_args(kind) if NoneType in get_args(kind)), kind)
    choices = option.get("choices") or (get_args(kind) if get_origin(kind) is Literal else None)
    if choices:
        return {"choices": choices}
    if get_origin(kind) is Mapping:
        parse = _explaining(option["type"])
        return {"action": "append", "type": parse, "metavar": option["metavar"]}
    if get_origin(kind) is not tuple:
        parse = _parser(option, kind)
        return {"type": parse, "metavar": option.get("metavar", _METAVARS.get(kind, "X"))}
    item = get_args(kind)[0]
    metavar = option.get("metavar", "TEXT")
    if option.get("repeatable"):
        return {"action": "append", "type": _parser(option, item), "metavar": metavar}
    if item is float:
        return {"nargs": "+", "type": float, "metavar": metavar}
    return {"type": option.get("type", names), "metavar": metavar}


def _parser(option: Mapping[str, Any], kind: Any) -> Callable[[str], Any]:
    """Return the function that makes the field's value of an option's text."""
    if (scale := option.get("scale")) is not None:

        def number(given: str) -> float:
            value = float(given) * scale
            return round(value) if kind is int else float(value)

        return number
    parse: Callable[[str], Any] = option.get("type") or (
        kind if kind in (int, float, Path) else text
    )
    if parse is option.get("type"):
        parse = _explaining(parse)
    if (none := option.get("none")) is not None:
        return lambda given: None if given == none else parse(given)
    return parse


def _explaining(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a parser whose ValueError argparse shows as it is."""

    def explained(given: str) -> Any:
        try:
            return parse(given)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return explained


def _help(option: Mapping[str, Any], field: Field[Any], kind: Any) -> str:
    """Return the help text with the default in parentheses, if there is one to show."""
    default = option.get("default", default_of(field))
    if kind is bool or default in (None, MISSING, (), {}):
        shown = ""
    elif isinstance(default, tuple):
        shown = ",".join(f"{item:g}" if isinstance(item, float) else item for item in default)
    elif isinstance(default, float):
        shown = f"{default / option.get('scale', 1):g}"
    else:
        shown = str(default)
    return str(option["help"]) + (f" (default: {shown})" if shown else "")
