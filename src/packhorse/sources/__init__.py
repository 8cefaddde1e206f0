"""Reads an input into rows, one at a time: every row exactly once, in order, good or bad.

    file --lines, csvfile, parquet--> Record --rows--> Request | Failure

A `Record` is one row as its file holds it; `rows.to_row` is the one place where its fields become a
row of the job, whatever the format. No file is ever held in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, get_args

from packhorse.config import InputConfig
from packhorse.data import Failure, Request
from packhorse.errors import ConfigError, InputError
from packhorse.sources import lines, openai
from packhorse.sources.columns import find_prompt, no_column
from packhorse.sources.csvfile import open_csv
from packhorse.sources.faults import RowError, shown
from packhorse.sources.fields import FieldRow, to_fields
from packhorse.sources.options import ambiguity
from packhorse.sources.parquet import open_parquet
from packhorse.sources.rows import Keys, Layout, Record, to_row
from packhorse.sources.template import Template

__all__ = [
    "INPUT_FORMATS",
    "FieldRow",
    "InputFormat",
    "detect_format",
    "read_fields",
    "read_rows",
    "shown",
]

InputFormat = Literal["jsonl", "openai-batch", "csv", "parquet", "text"]
INPUT_FORMATS: tuple[InputFormat, ...] = get_args(InputFormat)

_FORMAT_OF_SUFFIX: dict[str, InputFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
_STDIN_SUFFIX = ".stdin"
_LINES_LOOKED_AT = 100
_OTHER_UNICODE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


def detect_format(path: Path) -> InputFormat:
    """What `path` holds, by its ending; JSONL is looked into to recognise OpenAI batch lines.

    A file that ends in .stdin is spooled standard input: JSONL if its first line that is not blank
    starts with "{", otherwise text. The first line that is a whole object decides between JSONL
    and OpenAI batch lines, so that a malformed one above it costs no other row.

    Raises InputError for a file that cannot be read, and for an ending that is not known.
    """
    with _reading(path):
        _check_file(path)
        return _detect(path, path.suffix.lower())


def _detect(path: Path, suffix: str) -> InputFormat:
    if suffix == _STDIN_SUFFIX:
        found: InputFormat = "jsonl" if _first_character(path) == b"{" else "text"
    elif suffix in _FORMAT_OF_SUFFIX:
        found = _FORMAT_OF_SUFFIX[suffix]
    else:
        raise InputError(
            f"{path} ends in {suffix or 'nothing'}, which says no known format",
            f"rename it to one of {', '.join(_FORMAT_OF_SUFFIX)}, or pipe JSONL or text through -",
        )
    if suffix == ".json" and _first_character(path) == b"[":
        raise InputError(
            f"{path} is one JSON array, not one object a line",
            "turn it into JSONL, for example with: jq -c '.[]' in.json > in.jsonl",
        )
    if found == "jsonl" and openai.is_batch_line(_first_object(path)):
        return "openai-batch"
    return found


def read_rows(path: Path, config: InputConfig) -> Iterator[Request | Failure]:
    """Every row of `path`, in order; a row that cannot be used is a Failure that costs no other.

    The first row is read before this returns, so whatever ends the job (InputError for the file,
    ConfigError for the template or a combination of options) is raised here, not later; only a
    Parquet file that is damaged further in or a disk that fails raises InputError on the way.

    Memory: one row (one batch of rows for Parquet), and about 90 bytes for each row that has no id
    of its own, which tell equal rows apart.
    """
    if config.limit is not None and config.limit < 1:
        raise ConfigError(f"limit is {config.limit}", "a limit is at least 1 row")
    if config.template is not None and config.prompt_column is not None:
        raise ConfigError(
            "both a template and a prompt column are given",
            "use one of them: the template names the columns it needs",
        )
    template = None if config.template is None else Template.parse(config.template)
    input_format = detect_format(path)
    with _reading(path):
        layout, records = _OPENERS[input_format](path, template, config.prompt_column)
    layout = replace(layout, row_options=config.row_options)
    _check_columns(path, layout)
    rows = _rows(path, layout, records, config.limit)
    return chain([next(rows)], rows)


def _check_columns(path: Path, layout: Layout) -> None:
    """InputError for columns of a table that may be options or data: all its rows would fail."""
    options, unknown = layout.option_columns, layout.unknown_columns
    if options and unknown and layout.row_options == "auto":
        message, advice = ambiguity(options, unknown).split("; ")
        raise InputError(f"of the columns of {path}, {message}", advice)


def read_fields(path: Path, names: Sequence[str]) -> Iterator[FieldRow]:
    """The named columns of a table, or fields of JSON lines, of every row in order.

    Raises InputError for a file that cannot be read and for a name that no row has, which for JSON
    lines is known after the last row only.
    """
    input_format = detect_format(path)
    if input_format == "openai-batch":
        raise InputError(
            f"{path} holds OpenAI batch lines, which have no columns",
            "give the rows as CSV, Parquet or JSONL",
        )
    wanted = Template(tuple(("", name) for name in names))
    found: set[str] = set()
    known: tuple[str, ...] = ()
    with _reading(path):
        _, records = _OPENERS[input_format](path, wanted, None)
        for index, record in enumerate(records):
            row = to_fields(index, record, names)
            found.update(row.names)
            known = known or row.names
            yield row
    for name in names:
        if name not in found and known:
            raise no_column(path, known, name, "choose one of these")


def _rows(
    path: Path, layout: Layout, records: Iterator[Record], limit: int | None
) -> Iterator[Request | Failure]:
    keys = Keys()
    index = -1
    with _reading(path):
        for index, record in enumerate(islice(records, limit)):
            yield to_row(index, record, layout, keys)
    if index < 0:
        raise InputError(f"{path} has no rows", "is it the right file?")


_Opener = Callable[[Path, Template | None, str | None], tuple[Layout, Iterator[Record]]]


def _open_jsonl(
    path: Path, template: Template | None, prompt_column: str | None
) -> tuple[Layout, Iterator[Record]]:
    return Layout(template, prompt_column), lines.read_objects(path)


def _open_openai(
    path: Path, template: Template | None, prompt_column: str | None
) -> tuple[Layout, Iterator[Record]]:
    if template is not None or prompt_column is not None:
        raise ConfigError(
            f"{path} holds OpenAI batch lines, which carry their own prompts",
            "leave the template and the prompt column out",
        )
    return openai.LAYOUT, lines.read_objects(path)


def _open_text(
    path: Path, template: Template | None, prompt_column: str | None
) -> tuple[Layout, Iterator[Record]]:
    layout = find_prompt(path, lines.TEXT_FIELDS, template, prompt_column)
    return layout, lines.read_text(path)


_OPENERS: dict[InputFormat, _Opener] = {
    "jsonl": _open_jsonl,
    "openai-batch": _open_openai,
    "csv": open_csv,
    "parquet": open_parquet,
    "text": _open_text,
}


def _check_file(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path} does not exist", "check the path of the input")
    if path.is_dir():
        raise InputError(f"{path} is a folder", "name the file inside it")
    if not path.is_file():
        raise InputError(f"{path} is not an ordinary file", "pipe it through - instead")
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise InputError(f"{path} is empty", "is it the right file?")
    if start.startswith(_OTHER_UNICODE_MARKS):
        raise InputError(
            f"{path} is UTF-16 or UTF-32, not UTF-8",
            "convert it, for example with: iconv -f UTF-16 -t UTF-8 IN > OUT",
        )


def _first_character(path: Path) -> bytes:
    """The first byte that is no white space, however long its line."""
    with path.open("rb") as file:
        for part in iter(partial(file.readline, 1024), b""):
            if text := part.removeprefix(lines.BYTE_ORDER_MARK).strip():
                return text[:1]
    return b""


def _first_object(path: Path) -> Mapping[str, Any]:
    for record in islice(lines.read_objects(path), _LINES_LOOKED_AT):
        try:
            return record.read()
        except RowError:
            continue
    return {}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}",
            "check its permissions and its disk",
        ) from error
