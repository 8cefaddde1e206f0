"""Parquet through pyarrow, a small batch of rows in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.errors import InputError
from packhorse.sources.columns import find_prompt
from packhorse.sources.faults import RowError
from packhorse.sources.rows import Layout, Record, canonical_json
from packhorse.sources.template import Template

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 1000
_BUFFER_BYTES = 2**20


def open_parquet(
    path: Path, template: Template | None, prompt_column: str | None
) -> tuple[Layout, Iterator[Record]]:
    """The layout, found from the schema, and the records.

    A column `messages` (a list of structs) is used when there is none named `prompt` and none was
    asked for. The prompt's column may be of any text type, dictionary-encoded or not.
    """
    import pyarrow.parquet as pq

    with _arrow_errors(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
    asked_for = template is not None or prompt_column is not None
    if not asked_for and "prompt" not in schema.names and "messages" in schema.names:
        layout = Layout(columns=tuple(schema.names))
    else:
        layout = find_prompt(path, schema.names, template, prompt_column)
    if layout.prompt_field is not None:
        _check_is_text(path, schema.field(layout.prompt_field))
    columns = [name for name in layout.names if name in schema.names]
    return layout, _read(path, columns)


def _check_is_text(path: Path, field: pa.Field) -> None:
    import pyarrow.types as types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    if not any(test(kind) for test in tests):
        raise InputError(
            f"column {field.name!r} of {path} holds {kind}, not text",
            f"choose a text column with --prompt-column, or use --template '{{{field.name}}}'",
        )


def _read(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    import pyarrow.parquet as pq

    number = 0
    with _arrow_errors(path), pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
        # Without threads: none is left behind for engines that fork, and memory stays small.
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
            values = [_values(batch.column(name)) for name in columns]
            for row in zip(*values, strict=True):
                number += 1
                yield _record(number, columns, row)


def _record(number: int, columns: Sequence[str], row: Sequence[Any]) -> Record:
    raw = None
    if any(isinstance(value, UnicodeDecodeError) for value in row):
        values = [each.object if isinstance(each, UnicodeDecodeError) else each for each in row]
        raw = canonical_json(values).encode("utf-8")
    return Record(number, f"row-{number}", partial(_read_row, columns, row), raw)


def _read_row(columns: Sequence[str], row: Sequence[Any]) -> Mapping[str, Any]:
    return {
        name: _not_utf8(name, value) if isinstance(value, UnicodeDecodeError) else value
        for name, value in zip(columns, row, strict=True)
    }


def _not_utf8(name: str, error: UnicodeDecodeError) -> RowError:
    return RowError(
        "invalid_utf8",
        f"byte {error.start + 1} of column {name!r} (0x{error.object[error.start]:02x}) "
        "is not UTF-8; write the file again from correct text",
    )


def _values(column: pa.Array) -> list[Any]:
    """Python values; a UnicodeDecodeError where one is no text: Arrow reads without a check."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error.with_traceback(None)


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} cannot be read as Parquet: {reason}",
            "is it Parquet, and was it copied whole? Copy or write it again",
        ) from error
