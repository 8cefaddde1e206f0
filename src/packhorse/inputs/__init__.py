"""Read an input file into rows, one at a time, in order: each row is a Request or a Failure.

    file --reader of its format--> Record --rows.parse_row--> Request | Failure

`FORMATS` lists the formats: a reader yields a `Record` per row and a `RowLayout` that says which
fields hold the prompt; `rows.parse_row` interprets the fields, whatever the format. No reader holds
a whole file in memory.
"""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.config import CsvQuoting, InputConfig
from packhorse.data import Failure, Request
from packhorse.errors import ConfigError, InputError
from packhorse.inputs import lines
from packhorse.inputs.columns import missing_column_error
from packhorse.inputs.fields import FieldRow, parse_fields
from packhorse.inputs.foreign_content import (
    STDIN_SUFFIX,
    input_name,
    reject_foreign_content,
    reject_json_document,
)
from packhorse.inputs.parquet import find_layout, open_parquet, records_of
from packhorse.inputs.rows import Record, Report, RowKeys, RowLayout, parse_row
from packhorse.inputs.tables import allows_quotes, open_csv
from packhorse.inputs.template import Template
from packhorse.openai_format import batch_lines
from packhorse.openai_format.row_errors import RowError, format_value
from packhorse.openai_format.row_options import describe_ambiguity
from packhorse.storage.atomic_files import is_there
from packhorse.storage.compressed_files import compression_named, content_suffix, open_content
from packhorse.storage.urls import public_name, reject_merged_url

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "FORMATS",
    "FieldRow",
    "Format",
    "InputFiles",
    "Source",
    "detect_format",
    "files_of",
    "find_files",
    "for_model",
    "format_value",
    "input_errors",
    "list_files",
    "quoting_settings",
    "read_arrow",
    "read_fields",
    "read_rows",
]


@dataclass(frozen=True, slots=True)
class InputFiles:
    """Files of one format that are read one after the other, as one input."""

    paths: tuple[Path, ...]

    def __str__(self) -> str:
        first, *others = self.paths
        return f"{first} and {len(others)} more" if others else str(first)


Source = Path | InputFiles
"""An input: a file, or several."""


def files_of(source: Source) -> tuple[Path, ...]:
    """Return the files of an input."""
    return source.paths if isinstance(source, InputFiles) else (source,)


def find_files(names: Sequence[str]) -> Source:
    """Return the input that names stand for; arguments are those of `list_files`.

    Raises:
        InputError: As `list_files`; formats of the files differ.
    """
    paths = list_files(names)
    if len(paths) == 1:
        return paths[0]
    kinds = {detect_format(path): path for path in reversed(paths)}
    if len(kinds) > 1:
        listed = ", ".join(f"{path} is {kind}" for kind, path in kinds.items())
        raise InputError(
            f"files of one job must have one format: {listed}",
            "run one job per format, name the files with a pattern such as 'folder/*.jsonl', or "
            "write one output per file with --output-dir",
        )
    return InputFiles(paths)


def list_files(names: Sequence[str]) -> tuple[Path, ...]:
    """Return the files that names stand for: files, folders and patterns with *, ? or [].

    Names are taken in their order; what a folder (with its folders) or a pattern holds is sorted by
    path. Files of a folder whose name says that they are no rows are left out, hidden ones too, and
    a file that was found before is not read again.

    Raises:
        InputError: There is no such file, or a folder or pattern has none.
    """
    found: dict[Path, None] = {}
    for name in names:
        files = _matching(name)
        if not files:
            raise InputError(
                f"there is no file {format_value(name)}",
                "name an input file; for a single prompt, write it to a file or pipe it in with -",
            )
        found |= dict.fromkeys(files)
    return tuple(found)


def _matching(name: str) -> list[Path]:
    path = Path(name)
    if is_there(path) and path.is_dir():
        known = tuple(suffix for each in FORMATS.values() for suffix in each.suffixes)
        inside = (each for each in sorted(path.rglob("*")) if each.is_file())
        files = [
            each
            for each in inside
            if content_suffix(each) in known
            and not any(part.startswith(".") for part in each.relative_to(path).parts)
        ]
        if not files:
            raise InputError(
                f"the folder {name} has no file of rows",
                f"their names end in {', '.join(known)}, perhaps with .gz, .bz2, .xz or .zst",
            )
        return files
    if is_there(path) or not glob.has_magic(name):
        return [path] if is_there(path) else []
    found = sorted(map(Path, glob.iglob(name, recursive=True)))  # noqa: PTH207 (also absolute)
    return [path for path in found if path.is_file()]


Opener = Callable[[Path, Template | None, InputConfig, Report], tuple[RowLayout, Iterator[Record]]]


@dataclass(frozen=True, slots=True)
class Format:
    """How files of one input format are recognised and opened.

    Attributes:
        suffixes: Endings of file names, in lower case.
        open: Return the layout of the rows and an iterator over the records. Arguments: the path,
            the template (if the prompt is built from fields), the settings, and a function that
            takes a warning about the file as a whole.
    """

    suffixes: tuple[str, ...]
    open: Opener


FORMATS: dict[str, Format] = {
    "jsonl": Format((".jsonl", ".ndjson", ".json"), lines.open_jsonl),
    "openai-batch": Format((), lines.open_batch_lines),  # JSONL, recognised by its first object
    "csv": Format((".csv", ".tsv"), open_csv),
    "parquet": Format((".parquet",), open_parquet),
    "text": Format((".txt",), lines.open_text),
}
"""All input formats by name. To add one, see docs/how-to/add-an-input-format.md."""
_LINES_CHECKED = 100
"""Lines searched for the first JSON object."""


def detect_format(source: Source) -> str:
    """Return the name of the format of an input, a key of FORMATS.

    The suffix decides. A file with the suffix .stdin is spooled standard input: JSONL if its first
    line that is not blank starts with "{", else text. The first line that is a whole JSON object
    decides between JSONL and OpenAI batch lines, so a malformed line above it costs no other row.

    Raises:
        InputError: If the file cannot be read or its suffix is not known.
    """
    path = files_of(source)[0]
    with input_errors(path):
        _check_file(path)
        return _detect(path, content_suffix(path))


def _detect(path: Path, suffix: str) -> str:
    formats = {each: name for name, known in FORMATS.items() for each in known.suffixes}
    if suffix == STDIN_SUFFIX:
        first = _first_character(path)
        found = "jsonl" if first == b"{" else "text"
        if first == b"[":
            reject_json_document(path)
    elif suffix in formats:
        found = formats[suffix]
        if found == "parquet" and compression_named(path):
            raise InputError(
                f"{path} is a Parquet file inside a compressed one",
                "unpack it: Parquet files are compressed inside",
            )
    else:
        raise InputError(
            f"the format of {path} is unknown: its name ends in {suffix or 'nothing'}"
            + (f" before {path.suffix}" if compression_named(path) else ""),
            f"unpack it: tar -xf {shlex.quote(str(path))}"
            if suffix in (".tar", ".tgz")
            else f"end it in one of {', '.join(formats)}, or pipe JSONL or text through -",
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
    source: Source, config: InputConfig, report: Report = lambda message: None
) -> Iterator[Request | Failure]:
    """Yield every row of an input, in order; a row that cannot be used is a Failure.

    Rows of several files that have no id of their own are called FILE:line-N.

    Memory: one row (one batch of rows for Parquet), and about 90 bytes per row without an id, to
    tell equal rows apart.

    Args:
        source: The input.
        config: How rows become prompts.
        report: Takes a warning about the file as a whole, such as cells that look quoted.

    Raises:
        InputError: If a file cannot be read. The first row is read before this function returns,
            so later only a Parquet file that is damaged further in or a failing disk raises it.
        ConfigError: For the template or a combination of options, before this function returns.
    """
    if config.limit is not None and config.limit < 1:
        raise ConfigError(
            f"limit must be at least 1 row, got {config.limit}", "leave it out to read all"
        )
    keys = RowKeys()
    if isinstance(source, Path):
        return _read_file(source, config, report, keys)
    return _read_files(source.paths, config, report, keys)


def _read_file(
    path: Path,
    config: InputConfig,
    report: Report,
    keys: RowKeys,
    *,
    may_be_empty: bool = False,
) -> Iterator[Request | Failure]:
    template = _template(config)
    input_format = FORMATS[detect_format(path)]
    with input_errors(path):
        layout, records = input_format.open(path, template, config, report)
    layout = replace(layout, row_options=config.row_options, messages_format=config.messages_format)
    _check_columns(path, layout)
    rows = _rows(path, layout, records, config.limit, keys)
    first = next(rows, None)
    if first is None:
        if may_be_empty:
            return iter(())
        raise InputError(f"{input_name(path)} has no rows", "is it the right file?")
    rows = chain([first], rows)
    # The columns of a table are known; JSON lines show only at the end that none has the id.
    return rows if config.id_column is None or layout.columns else _checked_ids(path, layout, rows)


def _read_files(
    paths: Sequence[Path], config: InputConfig, report: Report, keys: RowKeys
) -> Iterator[Request | Failure]:
    common = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    for path in paths:  # before rows run: a column that one lacks would end the job in its middle
        if next(_read_file(path, config, report, RowKeys(), may_be_empty=True), None) is None:
            report(f"{path} has no rows")

    def numbered() -> Iterator[Request | Failure]:
        index = 0
        for path in paths:
            name = path.absolute().relative_to(common).as_posix()
            for row in _read_file(path, config, lambda text: None, keys, may_be_empty=True):
                row_id = row.id if row.has_own_id else f"{name}:{row.id}"
                yield replace(row, index=index, id=row_id)
                index += 1
        if not index:
            raise InputError(f"none of the {len(paths)} files has rows", "are they the right ones?")

    return islice(numbered(), config.limit)


def read_arrow(
    names: Sequence[str],
    select: Callable[[Sequence[str]], tuple[pa.Schema, Iterable[pa.RecordBatch]]],
    config: InputConfig,
) -> Iterator[Request | Failure]:
    """Yield every row of a table in memory, in order; rows have no ids of their own.

    Args:
        names: Names of all columns.
        select: Returns the schema and the rows of some columns.
        config: How rows become prompts.

    Raises:
        InputError: If the table has no text column for the prompt, before this function returns.
        ConfigError: For the template or a combination of options, before this function returns.
    """
    import pyarrow as pa

    template, data = _template(config), Path("the data")
    schema = pa.schema([(name, pa.null()) for name in names])
    layout = find_layout(data, schema, template, config)
    schema, batches = select([name for name in layout.prompt_names if name in names])
    find_layout(data, schema, template, config)  # checks the types of the columns
    layout = replace(layout, row_options=config.row_options, id_field="\0")
    keys = RowKeys()
    records = enumerate(records_of(batches))
    return (parse_row(index, record, layout, keys) for index, record in records)


def for_model(config: InputConfig, model: str) -> InputConfig:
    """Return `config` for a job that runs `model`: batch lines for another model are Failures."""
    names = batch_lines.model_names(model, config.served_model_name)
    return replace(config, served_model_name=names)


def quoting_settings(source: str, config: InputConfig) -> dict[str, Any]:
    """Return the quoting of a CSV or TSV input, for the journal; {} for other formats."""
    path = Path(public_name(source))
    if content_suffix(path) not in FORMATS["csv"].suffixes:
        return {}
    return {"csv_quoting": "minimal" if allows_quotes(path, config.csv_quoting) else "none"}


def _template(config: InputConfig) -> Template | None:
    """Return the template of a job, if it has one. Raises ConfigError."""
    if config.template is not None and config.prompt_column is not None:
        raise ConfigError(
            "both a template and a prompt column are given",
            "use one of them: the template names the columns it needs",
        )
    _check_unicode(config)
    return None if config.template is None else Template.parse(config.template)


def _check_columns(path: Path, layout: RowLayout) -> None:
    """Raise InputError for columns of a table that may be options or data: every row would fail."""
    options, unknown = layout.option_columns, layout.unknown_columns
    if options and unknown and layout.row_options == "auto":
        message, advice = describe_ambiguity(options, unknown)
        raise InputError(f"of the columns of {input_name(path)}, {message}", advice)


def read_fields(
    path: Path,
    names: Sequence[str],
    csv_quoting: CsvQuoting = "auto",
    report: Report = lambda message: None,
) -> Iterator[FieldRow]:
    """Yield the named columns of a table, or fields of JSON lines, for every row in order.

    Raises:
        InputError: If the file cannot be read, or if no row has one of the names, which for JSON
            lines is known only after the last row.
    """
    input_format = detect_format(path)
    if input_format == "openai-batch":
        raise InputError(
            f"{input_name(path)} contains OpenAI batch lines, which have no columns",
            "give the rows as CSV, Parquet or JSONL",
        )
    template = Template(tuple(("", name) for name in names))
    found: set[str] = set()
    known: tuple[str, ...] = ()
    with input_errors(path):
        config = InputConfig(csv_quoting=csv_quoting)
        _, records = FORMATS[input_format].open(path, template, config, report)
        for index, record in enumerate(records):
            row = parse_fields(index, record, names)
            found.update(row.names)
            known = known or row.names
            yield row
    for name in names:
        if name not in found and known:
            raise missing_column_error(path, known, name, "choose one of these", has_header=False)


def _rows(
    path: Path, layout: RowLayout, records: Iterator[Record], limit: int | None, keys: RowKeys
) -> Iterator[Request | Failure]:
    with input_errors(path):
        for index, record in enumerate(islice(records, limit)):
            yield parse_row(index, record, layout, keys)


def _checked_ids(
    path: Path, layout: RowLayout, rows: Iterable[Request | Failure]
) -> Iterator[Request | Failure]:
    """Yield `rows`; raise InputError after the last one if none has the field of the ids."""
    has_ids = False
    for row in rows:
        has_ids = has_ids or row.has_own_id
        yield row
    if has_ids:
        return
    known = dict[str, None]()
    for record in islice(lines.read_objects(path), _LINES_CHECKED):
        with suppress(RowError):
            known |= dict.fromkeys(record.read())
    if layout.id_field not in known:
        advice = "name the field of the ids with --id-column"
        raise missing_column_error(path, tuple(known), layout.id_field, advice, has_header=False)


def _check_unicode(config: InputConfig) -> None:
    for name in ("template", "prompt_column", "id_column", "system"):
        try:
            (getattr(config, name) or "").encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{name} must be Unicode text, got half a surrogate pair at character "
                f"{error.start + 1}",
                "give it as UTF-8",
            ) from None


def _check_file(path: Path) -> None:
    if not path.exists():
        reject_merged_url(path)
        raise InputError(f"{path} does not exist", "check the path of the input")
    if path.is_dir():
        raise InputError(f"{path} is a folder", "name the file inside it")
    if not path.is_file():
        kind = "a pipe" if path.is_fifo() else "a device"
        raise InputError(
            f"{path} is {kind}, not an ordinary file", "give - as INPUT and pipe the rows in"
        )
    reject_foreign_content(path)


def _first_character(path: Path) -> bytes:
    """Return the first byte that is not white space, however long its line."""
    with open_content(path) as file:
        for part in iter(partial(file.readline, 1024), b""):
            if text := part.removeprefix(lines.BYTE_ORDER_MARK).strip():
                return text[:1]
    return b""


def _first_object(path: Path) -> Mapping[str, Any]:
    """Return the first line that is an object; {} if none is.

    Raises:
        InputError: For one JSON document over many lines.
    """
    for place, record in enumerate(islice(lines.read_objects(path), _LINES_CHECKED)):
        try:
            return record.read()
        except RowError:
            if place == 0:
                reject_json_document(path)
    return {}


@contextmanager
def input_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{input_name(path)} cannot be read: {error.strerror or error}",
            "check its permissions and its disk",
        ) from error
