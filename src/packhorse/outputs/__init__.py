"""Writes what a job made: rows as JSONL, CSV, Parquet or OpenAI batch output, and the manifest.

Everything is written to a temporary file beside its place, brought to the disk, and only then moved
there: an output is whole or not there. Equal rows make equal bytes. Rows stream through.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from packhorse.config import OUTPUT_SUFFIXES
from packhorse.data import FinishReason, NumberId, RowId, id_to_json
from packhorse.errors import ConfigError
from packhorse.storage.atomic_files import atomic_file, json_bytes, write_json

__all__ = [
    "OpenAIShape",
    "OutputFormat",
    "OutputRow",
    "check_openai_output",
    "output_format",
    "write_json",
    "write_output",
]

OutputFormat = Literal["jsonl", "csv", "parquet"]

PARQUET_ROW_GROUP_ROWS = 10_000
_COLUMNS = (
    "id",
    "text",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "error_code",
    "error_message",
)
_LABEL_COLUMNS = ("id", "label", "confidence", "answered_by", "error_code", "error_message")
_TYPES = {"prompt_tokens": "int64", "completion_tokens": "int64", "confidence": "float64"}
Value = str | int | float | None


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One row of the output: a completion, or an error. Never both, never neither.

    prompt_tokens, completion_tokens: None where they are not known (tokens).
    line: where the row stands in the input, for errors.
    chat: the row was messages, which gives it the shape of a chat completion in OpenAI's format.
    confidence, answered_by: of a label, for the output of a classification: the text is the label.
    log_probs: `logprobs` of the choice in OpenAI's format, where the row asked for them.
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

    def __post_init__(self) -> None:
        assert (self.text is None) != (self.error_code is None), f"row {self.id!r}"


@dataclass(frozen=True, slots=True)
class OpenAIShape:
    """What OpenAI batch output says besides the rows.

    model: the name the answers carry.
    created: seconds since 1970, the same in every export of one job, so that equal rows make
        equal bytes.
    """

    model: str
    created: int = 0


def output_format(path: Path) -> OutputFormat:
    """By the ending of `path`. Raises ConfigError for one that is not known."""
    match path.suffix.lower():
        case ".jsonl":
            return "jsonl"
        case ".csv":
            return "csv"
        case ".parquet":
            return "parquet"
        case other:
            raise ConfigError(
                f"the output {path} ends in {other or 'nothing'}, which says no known format",
                f"end it in one of {', '.join(OUTPUT_SUFFIXES)}",
            )


def check_openai_output(path: Path) -> None:
    """ConfigError where answers of OpenAI batch lines cannot be written to `path`."""
    if output_format(path) != "jsonl":
        raise ConfigError(
            f"OpenAI batch output is JSONL, but the output is {path}", "end it in .jsonl"
        )


def write_output(
    path: Path,
    rows: Iterable[OutputRow],
    *,
    openai: OpenAIShape | None = None,
    labels: bool = False,
) -> int:
    """Writes `rows` in the format `path` ends in, atomically; gives the number of rows.

    openai: write OpenAI batch output lines; `path` then ends in .jsonl. labels: the rows are a
    classification, with a label and a confidence in the place of a text and its tokens.

    Text goes into CSV as it is: what a spreadsheet would take for a formula (=, +, -, @) is not
    changed, for data is data. What is no Unicode (half a surrogate pair) is written as its escape.

    Raises ConfigError for the ending, OutputError when the file cannot be written; what stood at
    `path` before is then still there, and nothing else is left behind.
    """
    kind = output_format(path)
    if openai is not None:
        check_openai_output(path)
    with atomic_file(path) as file:
        if openai is not None:
            return _write_lines(file, (_openai_line(row, openai) for row in rows), "custom_id")
        return _WRITERS[kind](file, rows, _LABEL_COLUMNS if labels else _COLUMNS)


def _write_jsonl(file: IO[bytes], rows: Iterable[OutputRow], columns: Sequence[str]) -> int:
    return _write_lines(file, (_jsonl_line(row, columns) for row in rows), "id")


def _write_lines(file: IO[bytes], documents: Iterable[dict[str, Any]], id_name: str) -> int:
    count = 0
    for document in documents:
        is_exact = isinstance(document[id_name], NumberId)
        file.write(_with_number(document, id_name) if is_exact else json_bytes(document))
        count += 1
    return count


def _with_number(document: dict[str, Any], id_name: str) -> bytes:
    """`document` as a line of JSON with the digits of its id, which `json` would not keep."""
    items = []
    for name, value in document.items():
        item = json_bytes({name: 0 if name == id_name else value})[1:-2]  # without braces
        items.append(item[:-1] + value.encode() if name == id_name else item)
    return b"{" + b", ".join(items) + b"}\n"


def _jsonl_line(row: OutputRow, columns: Sequence[str]) -> dict[str, Any]:
    if row.error_code is not None:
        error = {"code": row.error_code, "message": row.error_message, "line": row.line}
        return {"id": row.id, "error": error}
    answer = [name for name in columns if not name.startswith("error_")]
    return {name: row.id if name == "id" else _cell(row, name) for name in answer}


def _openai_line(row: OutputRow, shape: OpenAIShape) -> dict[str, Any]:
    name = blake2b(id_to_json(row.id).encode(), digest_size=16).hexdigest()
    response = error = None
    if row.error_code is not None:
        error = {"code": row.error_code, "message": row.error_message}
    else:
        body = _openai_body(row, shape, name)
        response = {"status_code": 200, "request_id": f"req_{name}", "body": body}
    return {
        "id": f"batch_req_{name}",
        "custom_id": row.id,
        "response": response,
        "error": error,
    }


def _openai_body(row: OutputRow, shape: OpenAIShape, name: str) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0}
    if row.chat:
        choice["message"] = {"role": "assistant", "content": row.text, "refusal": None}
    else:
        choice["text"] = row.text
    usage = None
    if row.prompt_tokens is not None and row.completion_tokens is not None:
        usage = {
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.completion_tokens,
            "total_tokens": row.prompt_tokens + row.completion_tokens,
        }
    return {
        "id": f"chatcmpl-{name}" if row.chat else f"cmpl-{name}",
        "object": "chat.completion" if row.chat else "text_completion",
        "created": shape.created,
        "model": shape.model,
        "choices": [choice | {"logprobs": row.log_probs, "finish_reason": row.finish_reason}],
        "usage": usage,
    }


def _write_csv(file: IO[bytes], rows: Iterable[OutputRow], columns: Sequence[str]) -> int:
    text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
    # csv's own line end, "\r\n": with it every Python version puts both characters in quotes.
    writer = csv.writer(text)
    writer.writerow(columns)
    count = 0
    for row in rows:
        writer.writerow([_cell(row, name) for name in columns])
        count += 1
    text.detach()  # flushes
    return count


def _write_parquet(file: IO[bytes], rows: Iterable[OutputRow], columns: Sequence[str]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {name: pa.type_for_alias(_TYPES.get(name, "string")) for name in columns}
    schema = pa.schema(list(types.items()))
    remaining = iter(rows)
    count = 0
    with pq.ParquetWriter(file, schema) as writer:
        while group := list(islice(remaining, PARQUET_ROW_GROUP_ROWS)):
            cells = ([_utf8(_cell(row, name)) for row in group] for name in columns)
            arrays = map(pa.array, cells, types.values())
            writer.write_table(pa.Table.from_arrays(list(arrays), schema=schema), len(group))
            count += len(group)
    return count


def _cell(row: OutputRow, name: str) -> Value:
    """The value of a row in a column, as tables hold it."""
    if name == "id":
        return str(row.id)
    value: Value = getattr(row, "text" if name == "label" else name)
    return value


def _utf8(value: Value) -> Value:
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


_WRITERS: dict[OutputFormat, Callable[[IO[bytes], Iterable[OutputRow], Sequence[str]], int]] = {
    "jsonl": _write_jsonl,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
