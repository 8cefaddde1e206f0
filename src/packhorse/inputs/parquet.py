"""Parquet, read with pyarrow in small batches of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.config import InputConfig
from packhorse.errors import InputError
from packhorse.inputs.columns import find_prompt_column
from packhorse.inputs.rows import Record, Report, RowLayout, canonical_json
from packhorse.inputs.template import Template
from packhorse.openai_format.row_errors import RowError
from packhorse.storage.table_json import json_value

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 1000
_BATCH_BYTES = 16 * 2**20
_BUFFER_BYTES = 2**20


def open_parquet(
    path: Path, template: Template | None, config: InputConfig, report: Report
) -> tuple[RowLayout, Iterator[Record]]:
    """Return the layout, found from the schema, and the records.

    A column `messages` (a list of structs or maps, or JSON text) is used if there is no column
    `prompt` and the settings name none. The prompt column may have any text or binary type,
    dictionary-encoded or not, hold messages or token ids, or be a field of a struct.

    Raises:
        InputError: If the file is not Parquet or has no text column for the prompt.
    """
    import pyarrow.parquet as pq

    with _arrow_errors(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
    layout = find_layout(path, schema, template, config)
    columns = [name for name in layout.names if name in schema.names]
    return layout, records_of(_batches(path, columns))


def find_layout(
    path: Path, schema: pa.Schema, template: Template | None, config: InputConfig
) -> RowLayout:
    """Return the layout of an Arrow table; arguments and errors are those of `open_parquet`."""
    asked_for = template is not None or config.prompt_column is not None
    if not asked_for and "prompt" not in schema.names and "messages" in schema.names:
        layout = RowLayout(columns=tuple(schema.names))
        if config.id_column is not None:
            layout = replace(layout, id_field=config.id_column)
    else:
        layout = find_prompt_column(
            path,
            schema.names,
            template,
            config.prompt_column,
            id_column=config.id_column,
            messages_format=config.messages_format,
            has_header=False,
        )
    if layout.prompt_field is not None:
        _check_is_prompt(path, schema, layout.prompt_field)
    return layout


def _check_is_prompt(path: Path, schema: pa.Schema, name: str) -> None:
    """Raise InputError for a column, or a field inside one, that cannot hold prompts."""
    import pyarrow.types as types

    kind = _type_at(schema, name)
    if kind is None:
        raise InputError(
            f"column {name.partition('.')[0]!r} of {path} has no field for {name!r}, it is "
            f"{schema.field(name.partition('.')[0]).type}",
            "name a field of it with --prompt-column",
        )
    tests = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_null,
        types.is_list,
        types.is_large_list,
    )
    if not _is_binary(kind) and not any(test(kind) for test in tests):
        field = name.rpartition(".")[2] or name
        raise InputError(
            f"column {name!r} of {path} must hold text, messages or token ids, got {kind}",
            f"choose a text column with --prompt-column, or use --template '{{{field}}}'"
            if field == name
            else "choose a field of text with --prompt-column",
        )


def _type_at(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Return the type of a column, or of a field inside structs and maps; None if there is none."""
    import pyarrow.types as types

    if name in schema.names:
        return _plain_type(schema.field(name).type)
    head, *rest = name.split(".")
    kind = _plain_type(schema.field(head).type)
    for part in rest:
        if types.is_map(kind):
            kind = _plain_type(kind.item_type)
        elif types.is_struct(kind) and kind.get_field_index(part) >= 0:
            kind = _plain_type(kind.field(part).type)
        else:
            return None
    return kind


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values of `kind`, below dictionaries and extensions."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType) and not _is_uuid(kind):
        return _plain_type(kind.storage_type)
    return kind


def _is_uuid(kind: pa.DataType) -> bool:
    return getattr(kind, "extension_name", "") == "arrow.uuid"


def _is_binary(kind: pa.DataType) -> bool:
    """Return whether values of `kind` are bytes, which many writers use for text."""
    import pyarrow.types as types

    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    is_view = getattr(types, "is_binary_view", lambda kind: False)
    return any(test(kind) for test in (*tests, is_view))


def _holds_binary(kind: pa.DataType) -> bool:
    """Return whether values of `kind` contain bytes at any depth."""
    kind = _plain_type(kind)
    return _is_binary(kind) or any(
        _holds_binary(kind.field(place).type) for place in range(kind.num_fields)
    )


def _batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    with _arrow_errors(path), pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
        # Without threads: none survives into engines that fork, and memory stays small.
        yield from file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)


def records_of(batches: Iterable[pa.RecordBatch]) -> Iterator[Record]:
    """Yield a record per row of Arrow batches."""
    number = 0
    for batch in batches:
        columns = batch.schema.names
        values = [_values(column) for column in batch.columns]
        for row in zip(*values, strict=True):
            number += 1
            yield _record(number, columns, row)


def column_schema(path: Path, names: Sequence[str]) -> pa.Schema:
    """Return the schema of the named columns, without metadata of the file as a whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _arrow_errors(path), pq.ParquetFile(path) as file:
        return pa.schema([file.schema_arrow.field(name) for name in names])


def column_batches(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the named columns in this order, at most _BATCH_ROWS rows and _BATCH_BYTES at a time.

    The bytes are an estimate from the mean size of the rows.
    """
    import pyarrow.parquet as pq

    with _arrow_errors(path), pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
        rows = _rows_per_batch(file.metadata)
        for batch in file.iter_batches(rows, columns=list(names), use_threads=False):
            yield batch.select(list(names))


def _rows_per_batch(metadata: Any) -> int:
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(1, largest))))


def json_columns(batch: pa.RecordBatch) -> list[list[Any]]:
    """Return the columns as lists of values for JSON, as `packhorse.storage.table_json` has it."""
    return [_json_values(column) for column in batch.columns]


def _json_values(column: pa.Array) -> list[Any]:
    import pyarrow as pa
    import pyarrow.types as types

    kind = _plain_type(column.type)
    if isinstance(column.type, pa.BaseExtensionType) and not _is_uuid(column.type):
        return _json_values(column.storage)
    if types.is_float16(kind) or types.is_float32(kind):
        return [_shortest(value, kind.bit_width) for value in column.to_pylist()]
    if kind == pa.time64("ns"):
        return [json_value(value) for value in _values(column)]
    try:
        values = column.to_pylist(maps_as_pydicts="strict")
    except (KeyError, ValueError, OverflowError, pa.ArrowException):
        # A map with equal keys, a time that Python does not have, or text that is not UTF-8.
        values = [_json_scalar(scalar) for scalar in column]
    plain = (types.is_string, types.is_boolean, types.is_integer, types.is_float64)
    return values if any(test(kind) for test in plain) else [json_value(each) for each in values]


def _json_scalar(scalar: pa.Scalar) -> Any:
    import pyarrow as pa

    with suppress(KeyError, ValueError, OverflowError, pa.ArrowException):
        return scalar.as_py(maps_as_pydicts="strict")
    value = _value(scalar)
    if isinstance(value, UnicodeDecodeError):
        return json_value(value.object)
    if isinstance(value, Exception):
        return _json_values(pa.array([scalar]).cast(_without_times(scalar.type)))[0]
    return value


def _without_times(kind: pa.DataType) -> pa.DataType:
    """Return `kind` with text in place of times, and bytes in place of text."""
    import pyarrow as pa
    import pyarrow.types as types

    kind = _plain_type(kind)
    if types.is_temporal(kind) and not types.is_duration(kind):
        return pa.string()
    if types.is_string(kind):
        return pa.binary()
    if types.is_large_string(kind):
        return pa.large_binary()
    if types.is_list(kind):
        return pa.list_(_without_times(kind.value_type))
    if types.is_large_list(kind):
        return pa.large_list(_without_times(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([field.with_type(_without_times(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_without_times(kind.key_type), _without_times(kind.item_type))
    return kind


def _record(number: int, columns: Sequence[str], row: Sequence[Any]) -> Record:
    raw = None
    if any(isinstance(value, Exception) for value in row):
        values = [_identity_of(value) if isinstance(value, Exception) else value for value in row]
        raw = canonical_json(values).encode("utf-8")
    return Record(number, f"row-{number}", partial(_read_row, columns, row), raw)


def _identity_of(error: Exception) -> Any:
    """Return what distinguishes a value that cannot be read from others."""
    return error.object if isinstance(error, UnicodeDecodeError) else str(error)


def _read_row(columns: Sequence[str], row: Sequence[Any]) -> Mapping[str, Any]:
    return {
        name: _fault(name, value) if isinstance(value, Exception) else value
        for name, value in zip(columns, row, strict=True)
    }


def _fault(name: str, error: Exception) -> RowError:
    if isinstance(error, UnicodeDecodeError):
        return RowError(
            "invalid_utf8",
            f"byte {error.start + 1} of column {name!r} (0x{error.object[error.start]:02x}) "
            "is not UTF-8; write the file again from correct text",
        )
    return RowError("bad_field", f"column {name!r} has a value that cannot be read: {error}")


def _values(column: pa.Array) -> list[Any]:
    """Return Python values, bytes as text; an exception for a value that cannot be read.

    Arrow does not validate text, and Python has no nanoseconds and no year after 9999.
    """
    import pyarrow as pa

    kind = column.type
    if isinstance(kind, pa.BaseExtensionType) and not _is_uuid(kind):
        return _values(column.storage)
    if kind == pa.time64("ns"):  # with pandas, to_pylist drops the nanoseconds
        return [_value(scalar) for scalar in column]
    try:
        values = list(column.to_pylist())
    except (ValueError, OverflowError, pa.ArrowException):  # UnicodeDecodeError is a ValueError
        values = [_value(scalar) for scalar in column]
    if _is_uuid(kind):
        return [None if value is None else str(value) for value in values]
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        return [_shortest(value, kind.bit_width) for value in values]
    if _holds_binary(kind):
        return [_text(value) for value in values]
    return values


def _shortest(value: float | None, bits: int) -> float | None:
    """Return the number with the fewest digits that equals `value` in `bits` bits.

    0.1, not 0.10000000149011612.
    """
    import numpy as np

    if value is None:
        return None
    return float(str(np.float16(value) if bits == 16 else np.float32(value)))


def _text(value: Any) -> Any:
    """Return `value` with bytes as text, or the error of bytes that are not UTF-8."""
    try:
        return _decoded(value)
    except UnicodeDecodeError as error:
        return error.with_traceback(None)


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if isinstance(value, dict):
        return {name: _decoded(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_decoded(each) for each in value)
    return value


def _value(scalar: pa.Scalar) -> Any:
    import pyarrow as pa

    try:
        return _nanoseconds(scalar) or scalar.as_py()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return error.with_traceback(None)


def _nanoseconds(scalar: pa.Scalar) -> str | None:
    """Return a time with nanoseconds as text with all its digits; None for any other value."""
    import pyarrow as pa
    import pyarrow.types as types

    kind = scalar.type
    if not (types.is_timestamp(kind) or types.is_time64(kind)) or kind.unit != "ns":
        return None
    if scalar.value is None:
        return None
    microseconds, rest = divmod(scalar.value, 1000)
    if not rest:
        return None
    coarse = pa.timestamp("us", kind.tz) if types.is_timestamp(kind) else pa.time64("us")
    moment = pa.scalar(microseconds, coarse).as_py()
    if types.is_timestamp(kind):
        text, fraction_end = (
            moment.isoformat(" ", "microseconds"),
            len("2024-01-02 03:04:05.000000"),
        )
    else:
        text, fraction_end = moment.isoformat("microseconds"), len("03:04:05.000000")
    return f"{text[:fraction_end]}{rest:03d}{text[fraction_end:]}"


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = "".join(each if each.isprintable() else "?" for each in reason)
        raise InputError(
            f"{path} cannot be read as Parquet: {reason}",
            "is it Parquet, and was it copied whole? Copy or write it again",
        ) from error
