"""Write the rows of a job as JSONL, CSV, Parquet or OpenAI batch output.

An output is written to a temporary file in the same folder, synced to disk and then renamed: it is
complete or absent. Equal rows give equal bytes. Rows are streamed.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from packhorse.config import OUTPUT_SUFFIXES
from packhorse.data import FinishReason, NumberId, RowId, id_to_json, parse_json_answer
from packhorse.errors import ConfigError, InputError
from packhorse.inputs.kept import KeptColumns
from packhorse.openai_format.responses import (
    Kind,
    choice_document,
    response_document,
    response_head,
    usage_document,
    with_prompt_log_probs,
)
from packhorse.outputs.columns import ERROR, TEXT, Columns, check_output_column, output_columns
from packhorse.storage.atomic_files import atomic_file, write_json
from packhorse.storage.compressed_files import compressed, compression_named, content_suffix
from packhorse.storage.table_json import cell_text, json_row, json_text

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "TEXT",
    "OpenAIOutput",
    "OutputFormat",
    "OutputRow",
    "check_openai_output",
    "check_output_column",
    "output_format",
    "write_json",
    "write_output",
]

OutputFormat = Literal["jsonl", "csv", "parquet"]

PARQUET_ROW_GROUP_ROWS = 10_000
_GROUP_BYTES = 64 * 2**20
_TYPES = {
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "reasoning_tokens": "int64",
    "confidence": "float64",
}
_MAX_FLOAT = sys.float_info.max
_USUAL = ("text", "finish_reason")
_CHOICE_FIELDS = (*_USUAL, "reasoning", "tool_calls")
Value = str | int | float | None


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One row of the output: either a completion or an error.

    Attributes:
        id: The row's own id, or the one made from its place.
        text: The completion; for a classification the label.
        finish_reason: Why the completion ended.
        prompt_tokens, completion_tokens: Numbers of tokens; None if not known.
        error_code, error_message: Of a row that failed.
        line: Line of the row in the input, for errors.
        chat: Whether the row was messages and becomes a chat completion in OpenAI's format.
        confidence, answered_by: Of the label, for a classification.
        log_probs: `logprobs` of the choice in OpenAI's format, if the row asked for them.
        prompt_log_probs: `prompt_logprobs` in vLLM's format, if the row asked for them.
        other_choices: text, finish_reason, log_probs and, if there are any, reasoning, tool_calls
            and content of the choices after the first.
        reasoning: What the model wrote between its tags of reasoning.
        reasoning_tokens: Its number of tokens, tags included.
        tool_calls: Calls of tools in OpenAI's format.
        content: `text` without the calls; None if it is `text`.
        is_json: Whether the row asked for JSON.
    """

    id: RowId
    text: str | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    line: int | None = None
    chat: bool = False
    confidence: float | None = None
    answered_by: str | None = None
    log_probs: dict[str, Any] | None = None
    prompt_log_probs: list[Any] | None = None
    other_choices: list[dict[str, Any]] | None = None
    reasoning: str | None = None
    reasoning_tokens: int | None = None
    tool_calls: list[dict[str, Any]] | None = None
    content: str | None = None
    is_json: bool = False

    @property
    def parsed(self) -> Any:
        """JSON value of the text; None if there is none."""
        return parse_json_answer(self.text or "", self.finish_reason)[0] if self.is_json else None

    @property
    def parsed_error(self) -> str | None:
        """Why there is no value, of a row that asked for JSON; see `parse_json_answer`."""
        return parse_json_answer(self.text or "", self.finish_reason)[1] if self.is_json else None

    @property
    def choices(self) -> list[dict[str, Any]] | None:
        """Text and finish reason of all choices, of a row with several; reasoning and tool calls of
        those that have them."""
        if not self.other_choices:
            return None
        first = {name: getattr(self, name) for name in _CHOICE_FIELDS}
        return [
            {name: each.get(name) for name in _CHOICE_FIELDS if name in _USUAL or each.get(name)}
            for each in (first, *self.other_choices)
        ]

    def __post_init__(self) -> None:
        assert (self.text is None) != (self.error_code is None), f"row {self.id!r}"


@dataclass(frozen=True, slots=True)
class OpenAIOutput:
    """Fields of OpenAI batch output that are the same in all rows.

    Attributes:
        model: Name of the model.
        created: Seconds since 1970, the same in every export of one job, so that equal rows give
            equal bytes.
    """

    model: str
    created: int = 0


def output_format(path: Path) -> OutputFormat:
    """Return the format that the suffix of `path` selects.

    Raises:
        ConfigError: For a suffix that is not known.
    """
    if compression_named(path) and not path.name.lower().endswith(OUTPUT_SUFFIXES):
        raise ConfigError(
            f"the output {path} cannot be compressed so",
            f"end it in one of {', '.join(OUTPUT_SUFFIXES)}",
        )
    match content_suffix(path):
        case ".jsonl":
            return "jsonl"
        case ".csv":
            return "csv"
        case ".parquet":
            return "parquet"
        case other:
            raise ConfigError(
                f"the format of the output {path} is unknown: it ends in {other or 'nothing'}",
                f"end it in one of {', '.join(OUTPUT_SUFFIXES)}",
            )


def check_openai_output(path: Path) -> None:
    """Check that OpenAI batch output can be written to `path`.

    Raises:
        ConfigError: If `path` does not end in .jsonl.
    """
    if str(path) != "-" and output_format(path) != "jsonl":
        raise ConfigError(
            f"OpenAI batch output is JSONL, but the output is {path}", "end it in .jsonl"
        )


def write_output(
    path: Path,
    rows: Iterable[OutputRow],
    *,
    openai: OpenAIOutput | None = None,
    labels: bool = False,
    extra_columns: Sequence[str] = (),
    kept: KeptColumns | None = None,
    output_column: str = TEXT,
    properties: Mapping[str, str] | None = None,
    are_values: bool = False,
) -> int:
    """Write `rows` atomically in the format that the suffix of `path` selects.

    Text is written to CSV unchanged, even if a spreadsheet would read it as a formula (=, +, -, @).
    Half a surrogate pair, which is not Unicode, is written as its escape.

    Args:
        path: The output file.
        rows: The rows, in order.
        openai: Write OpenAI batch output lines; `path` then ends in .jsonl.
        labels: The rows are a classification, with columns for label and confidence instead of text
            and tokens.
        extra_columns: Those of `packhorse.outputs.columns.EXTRA_COLUMNS` that the output has.
        kept: Columns of the input to repeat, of as many rows.
        output_column: Name of the column of `OutputRow.text`.
        properties: Properties of `OutputRow.parsed` that are columns of a table, and their types as
            `packhorse.params.structured_output.property_types` returns them.
        are_values: The properties are the results, also in JSONL, in place of text and tokens.

    Returns:
        The number of rows.

    Raises:
        ConfigError: For a suffix that is not known.
        InputError: If the input, whose columns are kept, cannot be read or has other rows.
        OutputError: If the file cannot be written. A file that was at `path` before is unchanged.
    """
    kind = output_format(path)
    if openai is not None:
        check_openai_output(path)
    with atomic_file(path) as target, compressed(target, path) as file:
        if openai is not None:
            return _write_lines(file, (_openai_line(row, openai) for row in rows), "custom_id")
        columns = output_columns(
            labels, output_column, kept, extra_columns, properties, are_values=are_values
        )
        return _WRITERS[kind](file, rows, columns)


def _write_jsonl(file: IO[bytes], rows: Iterable[OutputRow], columns: Columns) -> int:
    attributes = _json_attributes(columns)
    pairs = _with_kept(rows, columns.kept)
    return _write_lines(file, (_jsonl_line(*pair, columns, attributes) for pair in pairs), "id")


def _write_lines(file: IO[bytes], documents: Iterable[dict[str, Any]], id_name: str) -> int:
    count = 0
    for document in documents:
        file.write(json_row(document, exact=isinstance(document[id_name], NumberId)))
        count += 1
    return count


def _jsonl_line(
    row: OutputRow, kept: Mapping[str, Any], columns: Columns, attributes: Mapping[str, str]
) -> dict[str, Any]:
    document: dict[str, Any] = {"id": row.id}
    for name in kept:
        document[columns.name_of(name)] = kept[name]
    if row.error_code is not None:
        document[ERROR] = {
            "code": row.error_code, "message": row.error_message, "line": row.line,
        }  # fmt: skip
        return document
    for name, attribute in attributes.items():
        document[name] = getattr(row, attribute)
    if columns.are_values:
        values = row.parsed or {}
        document |= {name: values.get(key) for name, (key, _) in columns.properties.items()}
    return document


def row_as_json(row: OutputRow, kept: Mapping[str, Any], columns: Columns) -> bytes:
    """Return a row as one line of JSONL.

    Args:
        row: The row.
        kept: Values of its kept columns.
        columns: Columns of the output.
    """
    document = _jsonl_line(row, kept, columns, _json_attributes(columns))
    return json_row(document, exact=isinstance(row.id, NumberId))


def _json_attributes(columns: Columns) -> dict[str, str]:
    return {
        name: attribute
        for name, attribute in columns.results.items()
        if name != "id" and not attribute.startswith("error_")
    }


def _openai_line(row: OutputRow, openai: OpenAIOutput) -> dict[str, Any]:
    name = blake2b(id_to_json(row.id).encode(), digest_size=16).hexdigest()
    response = error = None
    if row.error_code is not None:
        error = {"code": row.error_code, "message": row.error_message}
    else:
        body = _openai_body(row, openai, name)
        response = {"status_code": 200, "request_id": f"req_{name}", "body": body}
    return {
        "id": f"batch_req_{name}",
        "custom_id": row.id,
        "response": response,
        "error": error,
    }


def _openai_body(row: OutputRow, openai: OpenAIOutput, name: str) -> dict[str, Any]:
    kind: Kind = "chat" if row.chat else "text"
    usage = None
    if row.prompt_tokens is not None and row.completion_tokens is not None:
        usage = usage_document(row.prompt_tokens, row.completion_tokens, row.reasoning_tokens)
    own = {name: getattr(row, name) for name in (*_CHOICE_FIELDS, "content", "log_probs")}
    choices = [
        choice_document(
            kind,
            index,
            each["text"] if each.get("content") is None else each["content"],
            each["log_probs"],
            each["finish_reason"],
            reasoning=each.get("reasoning"),
            tool_calls=each.get("tool_calls"),
        )
        for index, each in enumerate((own, *(row.other_choices or ())))
    ]
    body = response_document(
        response_head(kind, name, openai.created, openai.model), choices, usage
    )
    return with_prompt_log_probs(kind, body, [row.prompt_log_probs] * len(choices))


def _write_csv(file: IO[bytes], rows: Iterable[OutputRow], columns: Columns) -> int:
    text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
    # csv's own line end, "\r\n": only then do all Python versions quote both characters.
    writer = csv.writer(text)
    kept_names = () if columns.kept is None else columns.kept.column_names()
    writer.writerow(["id", *map(columns.name_of, kept_names), *_table_types(columns)])
    count = 0
    for row, kept in _with_kept(rows, columns.kept):
        cells = [cell_text(kept.get(name)) for name in kept_names]
        results = (("false", "true")[e] if isinstance(e, bool) else e for e in _cells(row, columns))
        writer.writerow([str(row.id), *cells, *results])
        count += 1
    text.detach()  # flushes
    return count


def _write_parquet(file: IO[bytes], rows: Iterable[OutputRow], columns: Columns) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {name: pa.type_for_alias(kind) for name, kind in _table_types(columns).items()}
    kept_schema, tables = pa.schema([]), None
    if columns.kept is not None:
        kept_schema, tables = columns.kept.tables()
    named = [each.with_name(columns.name_of(each.name)) for each in kept_schema]
    own_id = pa.field("id", pa.string())
    schema = pa.schema([own_id, *named, *(pa.field(*each) for each in types.items())])
    remaining = iter(rows)
    count = 0
    with pq.ParquetWriter(file, schema) as writer:
        for kept, group in _groups(remaining, tables):
            ids = pa.array([_utf8(str(row.id)) for row in group], pa.string())
            cells = zip(*(map(_utf8, _cells(row, columns)) for row in group), strict=True)
            arrays = map(pa.array, cells, types.values())
            kept_arrays = [] if kept is None else kept.columns
            table = pa.Table.from_arrays([ids, *kept_arrays, *arrays], schema=schema)
            writer.write_table(table, len(group))
            count += len(group)
    return count


def _table_types(columns: Columns) -> dict[str, str]:
    """Return the columns of a table after the id and kept ones, and their types."""
    results = {
        name: _TYPES.get(attribute, "string") for name, attribute in _table_results(columns).items()
    }
    properties = {
        name: "string" if kind in ("json", "null") else kind
        for name, (_, kind) in columns.properties.items()
    }
    return {**properties, **results} if columns.are_values else {**results, **properties}


def _cells(row: OutputRow, columns: Columns) -> list[Value | bool]:
    """Return the values of the columns that `_table_types` names."""
    results = [_cell(row, attribute) for attribute in _table_results(columns).values()]
    properties = _property_values(row, columns)
    return [*properties, *results] if columns.are_values else [*results, *properties]


def _table_results(columns: Columns) -> dict[str, str]:
    """Return the results after the id that are columns of a table, and their attributes."""
    is_split = bool(columns.properties)
    return {
        name: attribute
        for name, attribute in columns.results.items()
        if attribute != "id" and not (is_split and attribute == "parsed")
    }


def _property_values(row: OutputRow, columns: Columns) -> list[Value | bool]:
    """Return the values of the columns for properties.

    A value of another type than that of its column is left empty; `text` has it.
    """
    if not columns.properties:
        return []
    parsed = row.parsed
    found = parsed if isinstance(parsed, dict) else {}
    return [_property_value(found.get(name), kind) for name, kind in columns.properties.values()]


def _property_value(value: Any, kind: str) -> Value | bool:
    if kind in ("json", "null"):
        return None if value is None else json_text(value)
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if kind == "string":
        return value if isinstance(value, str) and not isinstance(value, NumberId) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if kind == "float64":
        return float(value) if abs(value) <= _MAX_FLOAT else None
    is_whole = isinstance(value, int) or value.is_integer()
    return int(value) if is_whole and -(2**63) <= value < 2**63 else None


def _with_kept(
    rows: Iterable[OutputRow], kept: KeptColumns | None
) -> Iterator[tuple[OutputRow, dict[str, Any]]]:
    """Yield each row with the values of its kept columns."""
    if kept is None:
        yield from ((row, {}) for row in rows)
        return
    remaining = kept.rows()
    for row in rows:
        values = next(remaining, None)
        if values is None:
            raise _other_rows()
        yield row, values
    if next(remaining, None) is not None:
        raise _other_rows()


def _groups(
    rows: Iterator[OutputRow], tables: Iterator[pa.Table] | None
) -> Iterator[tuple[pa.Table | None, list[OutputRow]]]:
    """Yield the rows of each row group with their kept columns, if there are any.

    A group ends at PARQUET_ROW_GROUP_ROWS, or before if kept columns take _GROUP_BYTES.
    """
    import pyarrow as pa

    if tables is None:
        while group := list(islice(rows, PARQUET_ROW_GROUP_ROWS)):
            yield None, group
        return
    parts: list[pa.Table] = []
    for table in tables:
        parts.append(table)
        number = sum(len(each) for each in parts)
        is_large = sum(each.nbytes for each in parts) >= _GROUP_BYTES
        if number + len(table) > PARQUET_ROW_GROUP_ROWS or is_large:
            yield _group(rows, pa.concat_tables(parts))
            parts = []
    if parts:
        yield _group(rows, pa.concat_tables(parts))
    if next(rows, None) is not None:
        raise _other_rows()


def _other_rows() -> InputError:
    return InputError(
        "the input, whose columns are kept, has other rows than the journal",
        "run the job's command again",
    )


def _group(rows: Iterator[OutputRow], table: pa.Table) -> tuple[pa.Table, list[OutputRow]]:
    group = list(islice(rows, len(table)))
    if len(group) != len(table):
        raise _other_rows()
    return table, group


def _cell(row: OutputRow, name: str) -> Value:
    """Return an attribute of a row as the value of a column of a table."""
    if name == "id":
        return str(row.id)
    value = getattr(row, name)
    if name == "parsed" and value is not None:
        return json_text(value)
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False)
    found: Value = value
    return found


def _utf8(value: Value) -> Value:
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


_WRITERS: dict[OutputFormat, Callable[[IO[bytes], Iterable[OutputRow], Columns], int]] = {
    "jsonl": _write_jsonl,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
