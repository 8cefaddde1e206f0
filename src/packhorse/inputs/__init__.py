"""Reads an input into rows, one at a time: every row exactly once, in order, good or bad.

    file --lines, csvfile, parquet--> Record --rows--> Request | Failure

A `Record` is one row as its file holds it; `rows.to_row` is the one place where its fields become a
row of the job, whatever the format. No file is ever held in memory as a whole.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, get_args

from packhorse.config import CsvQuoting, InputConfig
from packhorse.data import Failure, Request
from packhorse.errors import ConfigError, InputError
from packhorse.inputs import lines
from packhorse.inputs.columns import find_prompt, no_column
from packhorse.inputs.fields import FieldRow, to_fields
from packhorse.inputs.foreign_content import (
    STDIN_SUFFIX,
    called,
    refuse_foreign,
    refuse_json_document,
)
from packhorse.inputs.parquet import open_parquet
from packhorse.inputs.rows import Keys, Layout, Record, to_row
from packhorse.inputs.tables import Report, is_quoted, open_csv
from packhorse.inputs.template import Template
from packhorse.openai_format import batch_lines
from packhorse.openai_format.request_options import ambiguity
from packhorse.openai_format.row_errors import RowError, shown

__all__ = [
    "INPUT_FORMATS",
    "FieldRow",
    "InputFormat",
    "detect_format",
    "for_model",
    "quoting_settings",
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
_LINES_LOOKED_AT = 100


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
    if suffix == STDIN_SUFFIX:
        first = _first_character(path)
        found: InputFormat = "jsonl" if first == b"{" else "text"
        if first == b"[":
            refuse_json_document(path)
    elif suffix in _FORMAT_OF_SUFFIX:
        found = _FORMAT_OF_SUFFIX[suffix]
    else:
        raise InputError(
            f"the format of {path} is unknown: its name ends in {suffix or 'nothing'}",
            f"end it in one of {', '.join(_FORMAT_OF_SUFFIX)}, or pipe JSONL or text through -",
        )
    if suffix == ".json" and _first_character(path) == b"[":
        raise InputError(
            f"{path} is one JSON array, not one object per line",
            f"turn it into lines with: jq -c '.[]' {shlex.quote(str(path))} > rows.jsonl",
        )
    if found == "jsonl" and batch_lines.is_batch_line(_first_object(path)):
        return "openai-batch"
    return found


def read_rows(
    path: Path, config: InputConfig, report: Report = lambda message: None
) -> Iterator[Request | Failure]:
    """Every row of `path`, in order; a row that cannot be used is a Failure that costs no other.

    The first row is read before this returns, so whatever ends the job (InputError for the file,
    ConfigError for the template or a combination of options) is raised here, not later; only a
    Parquet file that is damaged further in or a disk that fails raises InputError on the way.

    report: called with a line for a person if the file as a whole looks odd.

    Memory: one row (one batch of rows for Parquet), and about 90 bytes for each row that has no id
    of its own, which tell equal rows apart.
    """
    if config.limit is not None and config.limit < 1:
        raise ConfigError(
            f"limit must be at least 1 row, got {config.limit}", "leave it out to read all"
        )
    if config.template is not None and config.prompt_column is not None:
        raise ConfigError(
            "both a template and a prompt column are given",
            "use one of them: the template names the columns it needs",
        )
    _check_unicode(config)
    template = None if config.template is None else Template.parse(config.template)
    input_format = detect_format(path)
    with _reading(path):
        layout, records = _open(path, input_format, template, config, report)
    layout = replace(layout, row_options=config.row_options)
    _check_columns(path, layout)
    rows = _rows(path, layout, records, config.limit)
    return chain([next(rows)], rows)


def for_model(config: InputConfig, model: str) -> InputConfig:
    """`config` for a job that runs `model`: batch lines that name another model are Failures."""
    names = batch_lines.model_names(model, config.served_model_name)
    return replace(config, served_model_name=names)


def quoting_settings(source: str, config: InputConfig) -> dict[str, Any]:
    """What a journal keeps of how cells are quoted: nothing for an input that has no cells."""
    path = Path(source)
    if _FORMAT_OF_SUFFIX.get(path.suffix.lower()) != "csv":
        return {}
    return {"csv_quoting": "minimal" if is_quoted(path, config.csv_quoting) else "none"}


def _check_columns(path: Path, layout: Layout) -> None:
    """InputError for columns of a table that may be options or data: all its rows would fail."""
    options, unknown = layout.option_columns, layout.unknown_columns
    if options and unknown and layout.row_options == "auto":
        message, advice = ambiguity(options, unknown).split("; ")
        raise InputError(f"of the columns of {called(path)}, {message}", advice)


def read_fields(
    path: Path,
    names: Sequence[str],
    csv_quoting: CsvQuoting = "auto",
    report: Report = lambda message: None,
) -> Iterator[FieldRow]:
    """The named columns of a table, or fields of JSON lines, of every row in order.

    Raises InputError for a file that cannot be read and for a name that no row has, which for JSON
    lines is known after the last row only.
    """
    input_format = detect_format(path)
    if input_format == "openai-batch":
        raise InputError(
            f"{called(path)} holds OpenAI batch lines, which have no columns",
            "give the rows as CSV, Parquet or JSONL",
        )
    wanted = Template(tuple(("", name) for name in names))
    found: set[str] = set()
    known: tuple[str, ...] = ()
    with _reading(path):
        config = InputConfig(csv_quoting=csv_quoting)
        _, records = _open(path, input_format, wanted, config, report)
        for index, record in enumerate(records):
            row = to_fields(index, record, names)
            found.update(row.names)
            known = known or row.names
            yield row
    for name in names:
        if name not in found and known:
            raise no_column(path, known, name, "choose one of these", has_header=False)


def _rows(
    path: Path, layout: Layout, records: Iterator[Record], limit: int | None
) -> Iterator[Request | Failure]:
    keys = Keys()
    index = -1
    with _reading(path):
        for index, record in enumerate(islice(records, limit)):
            yield to_row(index, record, layout, keys)
    if index < 0:
        raise InputError(f"{called(path)} has no rows", "is it the right file?")


def _open(
    path: Path,
    input_format: InputFormat,
    template: Template | None,
    config: InputConfig,
    report: Report,
) -> tuple[Layout, Iterator[Record]]:
    if input_format == "csv":
        return open_csv(path, template, config, report)
    return _OPENERS[input_format](path, template, config)


def _check_unicode(config: InputConfig) -> None:
    for name in ("template", "prompt_column", "system"):
        try:
            (getattr(config, name) or "").encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{name} must be Unicode text, got half a surrogate pair at character "
                f"{error.start + 1}",
                "give it as UTF-8",
            ) from None


_Opener = Callable[[Path, Template | None, InputConfig], tuple[Layout, Iterator[Record]]]


def _open_jsonl(
    path: Path, template: Template | None, config: InputConfig
) -> tuple[Layout, Iterator[Record]]:
    return Layout(template, config.prompt_column), lines.read_objects(path)


def _open_openai(
    path: Path, template: Template | None, config: InputConfig
) -> tuple[Layout, Iterator[Record]]:
    if template is not None or config.prompt_column is not None:
        raise ConfigError(
            f"{called(path)} holds OpenAI batch lines, which carry their own prompts",
            "leave the template and the prompt column out",
        )
    unwrap = partial(
        batch_lines.unwrap, models=config.served_model_name, endpoint=config.batch_endpoint
    )
    layout = Layout(
        id_field=batch_lines.ID_FIELD,
        unwrap=unwrap,
        bare=True,
        unwrapped_options=(batch_lines.TOP_LOG_PROBS,),
    )
    return layout, lines.read_objects(path, batch_lines.ID_FIELD)


def _open_text(
    path: Path, template: Template | None, config: InputConfig
) -> tuple[Layout, Iterator[Record]]:
    layout = find_prompt(path, lines.TEXT_FIELDS, template, config.prompt_column, has_header=False)
    return layout, lines.read_text(path)


_OPENERS: dict[InputFormat, _Opener] = {
    "jsonl": _open_jsonl,
    "openai-batch": _open_openai,
    "parquet": open_parquet,
    "text": _open_text,
}


def _check_file(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path} does not exist", "check the path of the input")
    if path.is_dir():
        raise InputError(f"{path} is a folder", "name the file inside it")
    if not path.is_file():
        kind = "a pipe" if path.is_fifo() else "a device"
        raise InputError(
            f"{path} is {kind}, not an ordinary file", "give - as INPUT and pipe the rows in"
        )
    refuse_foreign(path)


def _first_character(path: Path) -> bytes:
    """The first byte that is no white space, however long its line."""
    with path.open("rb") as file:
        for part in iter(partial(file.readline, 1024), b""):
            if text := part.removeprefix(lines.BYTE_ORDER_MARK).strip():
                return text[:1]
    return b""


def _first_object(path: Path) -> Mapping[str, Any]:
    """The first line that is an object. Raises InputError for a JSON document over many lines."""
    for place, record in enumerate(islice(lines.read_objects(path), _LINES_LOOKED_AT)):
        try:
            return record.read()
        except RowError:
            if place == 0:
                refuse_json_document(path)
    return {}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{called(path)} cannot be read: {error.strerror or error}",
            "check its permissions and its disk",
        ) from error
