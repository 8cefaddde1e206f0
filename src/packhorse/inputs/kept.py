"""Columns of an input that its output repeats: read again when the output is written.

    select_columns(...)      which columns to keep, checked before anything runs
    KeptColumns.rows()       their values, for JSONL and CSV outputs
    KeptColumns.tables()     the same as Arrow tables with the types of the input, for Parquet

Both yield what belongs to each row of `read_rows`, in its order, in bounded memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b, file_digest
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.config import CsvQuoting, InputConfig, OutputConfig
from packhorse.data import NumberId
from packhorse.errors import ConfigError, InputError
from packhorse.inputs import FORMATS, Source, detect_format, files_of, input_errors
from packhorse.inputs.columns import missing_column_error
from packhorse.inputs.foreign_content import input_name
from packhorse.inputs.json_types import JsonTypes
from packhorse.inputs.parquet import column_batches, column_schema, json_columns
from packhorse.inputs.rows import Record, Report
from packhorse.inputs.template import Template
from packhorse.openai_format.row_errors import RowError
from packhorse.storage.table_json import cell_text, json_text

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_ROWS = 1000
_MAX_JSON_COLUMNS = 10_000


@dataclass(frozen=True, slots=True)
class KeptColumns:
    """Columns of an input that are written to the output.

    Attributes:
        files: The input files, one after the other.
        names: Names of the columns; None for all fields of JSON lines, which name their own.
        id_field: The field of the rows' ids. If it is called "id", it is the column "id" of the
            output and not repeated; in Parquet it is, if it is not text.
        csv_quoting, limit: As the rows were read.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...] | None
    id_field: str = "id"
    csv_quoting: CsvQuoting = "auto"
    limit: int | None = None

    @property
    def is_parquet(self) -> bool:
        return detect_format(self.files[0]) == "parquet"

    def rows(self, *, with_id: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the values of each row by name, those that are there; {} if it cannot be read.

        Values are what `packhorse.storage.table_json` writes as JSON.

        Args:
            with_id: Include a column "id" that holds the rows' ids.
        """
        names = self.names
        if not with_id and self.id_field == "id":
            names = None if names is None else tuple(name for name in names if name != "id")
        has_all = names is None
        read = self._parquet_rows if self.is_parquet else self._line_rows
        for row in islice(
            chain.from_iterable(read(path, names) for path in self.files), self.limit
        ):
            if has_all and not with_id and self.id_field == "id":
                row.pop("id", None)
            yield row

    def column_names(self) -> tuple[str, ...]:
        """Return the names of all columns; reads JSON lines once if all of theirs are kept."""
        if self.names is not None:
            return tuple(name for name in self.names if (name, self.id_field) != ("id", "id"))
        names: dict[str, None] = {}
        for row in self.rows():
            names.update(dict.fromkeys(row))
            self._check_number(names)
        return tuple(names)

    def tables(self) -> tuple[pa.Schema, Iterator[pa.Table]]:
        """Return the schema of the columns and tables of at most TABLE_ROWS rows.

        Types are those of a Parquet file, text for CSV, and for JSON lines what all values of a
        field have in common, else text that holds each value as JSON.

        Raises:
            InputError: JSON lines have too many names.
        """
        if self.is_parquet:
            schema = self._parquet_schema()
            kept = [field for field in schema if not self._is_id(field.name, field.type)]
            return _schema(kept), self._parquet_tables(_schema(kept))
        types = self._types()
        fields = {n: kind for n, kind in types.items() if not self._is_id(n, kind)}
        schema = _schema([_field(name, kind) for name, kind in fields.items()])
        rows = self.rows(with_id=True)
        groups = iter(lambda: list(islice(rows, TABLE_ROWS)), [])
        return schema, (_table(group, fields, schema) for group in groups)

    def digest(self) -> str:
        """Return a digest of the bytes of the input. Raises InputError."""
        digests = []
        for path in self.files:
            with input_errors(path), path.open("rb") as file:
                digests.append(file_digest(file, lambda: blake2b(digest_size=16)).hexdigest())
        if len(digests) == 1:
            return digests[0]
        return blake2b("".join(digests).encode(), digest_size=16).hexdigest()

    def _line_rows(self, path: Path, names: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        template = Template(tuple(("", name) for name in names or ()))
        config = InputConfig(csv_quoting=self.csv_quoting)
        with input_errors(path):
            open_file = FORMATS[detect_format(path)].open
            records = open_file(path, template, config, lambda message: None)[1]
            yield from map(partial(_read, names=names), records)

    def _parquet_rows(self, path: Path, names: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        with input_errors(path):
            for batch in column_batches(path, names or ()):
                if not names:
                    yield from ({} for _ in range(batch.num_rows))
                for values in zip(*json_columns(batch), strict=True):
                    yield dict(zip(names or (), values, strict=True))

    def _parquet_schema(self) -> pa.Schema:
        """Return the schema of the kept columns that all files fit. Raises InputError."""
        import pyarrow as pa

        schemas = [column_schema(path, self.names or ()) for path in self.files]
        if len(schemas) == 1:
            return schemas[0]
        for path, schema in zip(self.files, schemas, strict=True):
            try:
                pa.unify_schemas([schemas[0], schema], promote_options="default")
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise InputError(
                    f"columns of {path} have other types than those of {self.files[0]}: {error}",
                    "write JSONL or CSV, name the columns to keep, or make the files alike",
                ) from error
        return pa.unify_schemas(schemas, promote_options="default")

    def _parquet_tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        import pyarrow as pa

        left = self.limit
        batches = (column_batches(path, schema.names) for path in self.files)
        for batch in chain.from_iterable(batches):
            part = batch if left is None else batch.slice(0, left)
            left = None if left is None else left - part.num_rows
            if part.num_rows:
                table = pa.Table.from_batches([part.replace_schema_metadata(None)])
                yield table if table.schema.equals(schema) else table.cast(schema)
            if left == 0:
                return

    def _types(self) -> dict[str, pa.DataType | None]:
        """Return the Arrow type of each column, None for one that is written as JSON."""
        import pyarrow as pa

        if self.names is not None and detect_format(self.files[0]) != "jsonl":
            return dict.fromkeys(self.names, pa.string())
        types = JsonTypes()
        for row in self.rows(with_id=True):
            types.add(row)
            self._check_number(row)
        found = types.arrow()
        self._check_number(found)
        return found if self.names is None else {name: found[name] for name in self.names}

    def _is_id(self, name: str, kind: pa.DataType | None) -> bool:
        """Return whether the column is the column "id" of the output, as text."""
        import pyarrow.types as types

        tests = (types.is_string, types.is_large_string, types.is_string_view)
        is_text = kind is None or any(test(kind) for test in tests)
        return name == "id" == self.id_field and is_text

    def _check_number(self, names: Iterable[str]) -> None:
        number = sum(1 for _ in names)
        if number > _MAX_JSON_COLUMNS:
            raise InputError(
                f"the rows of {input_name(self.files[0])} have more than {_MAX_JSON_COLUMNS:,} "
                "different fields, too many for a table",
                "name those to keep with --keep, or write JSONL",
            )


def select_columns(
    source: Source,
    reading: InputConfig,
    writing: OutputConfig,
    report: Report = lambda message: None,
) -> KeptColumns | None:
    """Return the columns of an input to keep; None if there are none.

    Args:
        source: The input.
        reading: How it is read.
        writing: Says which columns to keep.
        report: Takes a warning about columns that are left out.

    Raises:
        ConfigError: For OpenAI batch lines, whose output has no columns.
        InputError: A column does not exist, or its name is not unique.
    """
    files = files_of(source)
    path = files[0]
    keep, kind = writing.keep, detect_format(path)
    if keep == "auto":
        is_asked_for = reading.prompt_column is not None or reading.template is not None
        keep = "all" if is_asked_for and kind not in ("text", "openai-batch") else "none"
    if keep in ("none", ()):
        return None
    if kind == "openai-batch":
        raise ConfigError(
            f"{input_name(path)} contains OpenAI batch lines, and no column of them can be kept",
            "leave --keep out; the output repeats custom_id",
        )
    wanted = None if keep == "all" else (keep,) if isinstance(keep, str) else keep
    if kind != "jsonl":
        can_leave_out = writing.keep == "auto"
        for path in files:  # all have the columns of the first
            quoting = reading.csv_quoting
            wanted = _found_in_table(path, kind, quoting, wanted, can_leave_out, report)
    elif wanted is not None:
        wanted = _found_in_lines(files, wanted, reading.limit)
    id_field = reading.id_column or "id"
    return KeptColumns(files, wanted, id_field, reading.csv_quoting, reading.limit)


def _found_in_table(
    path: Path,
    kind: str,
    csv_quoting: CsvQuoting,
    wanted: tuple[str, ...] | None,
    can_leave_out: bool,
    report: Report,
) -> tuple[str, ...]:
    """Return the names of the wanted columns, each once; of all by default."""
    config = InputConfig(csv_quoting=csv_quoting)
    layout, _ = FORMATS[kind].open(path, Template(()), config, lambda message: None)
    known = layout.columns
    names = tuple(dict.fromkeys(known if wanted is None else wanted))
    for name in names:
        if name not in known:
            advice = "choose from these for --keep"
            raise missing_column_error(path, known, name, advice, has_header=kind == "csv")
    doubled = [name for name in names if known.count(name) > 1]
    if doubled and not can_leave_out:
        raise InputError(
            f"{input_name(path)} has more than one column {doubled[0]!r}",
            "rename all but one, or name other columns with --keep",
        )
    if doubled:
        listed = ", ".join(map(repr, doubled))
        report(f"{input_name(path)} has more than one column {listed}, which the output leaves out")
    return tuple(name for name in names if name not in doubled)


def _found_in_lines(
    files: tuple[Path, ...], names: Sequence[str], limit: int | None
) -> tuple[str, ...]:
    """Return `names`; raise InputError if no line has one of them. Stops at the last one found."""
    missing, known = set(names), dict[str, None]()
    lines = KeptColumns(files, None, id_field="", limit=limit)
    for row in lines.rows():
        known.update(dict.fromkeys(islice(row, 100)) if len(known) < 100 else {})
        missing.difference_update(row)
        if not missing:
            return tuple(dict.fromkeys(names))
    name = next(each for each in names if each in missing)
    advice = "choose from these for --keep"
    raise missing_column_error(files[0], tuple(known), name, advice, has_header=False)


def _read(record: Record, names: Sequence[str] | None) -> dict[str, Any]:
    """Return the fields of a record, of the given names or all; {} if they cannot be read."""
    try:
        fields = record.read()
    except (RowError, RecursionError):
        return {}
    if names is None:
        return {name: _value(value) for name, value in fields.items()}
    return {name: _value(fields[name]) for name in names if name in fields}


def _value(value: Any) -> Any:
    if isinstance(value, RowError):
        return value.value
    return json.loads(value) if isinstance(value, NumberId) else value


def _field(name: str, kind: pa.DataType | None) -> pa.Field:
    import pyarrow as pa

    return pa.field(_utf8(name), pa.string() if kind is None else kind)


def _schema(fields: list[pa.Field]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(fields)


def _table(
    rows: Sequence[Mapping[str, Any]], types: Mapping[str, pa.DataType | None], schema: pa.Schema
) -> pa.Table:
    import pyarrow as pa

    arrays = []
    for name, kind in types.items():
        values = [row.get(name) for row in rows]
        if kind is None:
            values = [None if value is None else json_text(value) for value in values]
        arrays.append(_array(values, pa.string() if kind is None else kind))
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:
        return pa.array(_utf8(values), kind)
    except pa.ArrowInvalid:  # bytes of a CSV cell that are not UTF-8
        return pa.array([_utf8(cell_text(value)) for value in values], kind)


def _utf8(value: Any) -> Any:
    """Return `value` with half surrogate pairs written as their escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, list):
        return [_utf8(each) for each in value]
    if isinstance(value, dict):
        return {_utf8(name): _utf8(each) for name, each in value.items()}
    return value
