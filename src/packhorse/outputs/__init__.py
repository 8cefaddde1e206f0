"""Write the rows of a job as JSONL, CSV, Parquet or OpenAI batch output.

An output is written to a temporary file in the same folder, synced to disk and then renamed: it is
complete or absent. Equal rows give equal bytes. Rows are streamed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from packhorse.config import OUTPUT_SUFFIXES
from packhorse.data import FinishReason, NumberId, RowId, id_to_json
from packhorse.errors import ConfigError
from packhorse.openai_format.responses import (
    Kind,
    choice_document,
    response_document,
    response_head,
    usage_document,
)
from packhorse.storage.atomic_files import atomic_file, json_bytes, write_json

__all__ = [
    "OpenAIOutput",
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
_AFTER = {"reasoning": "text", "reasoning_tokens": "completion_tokens", "tool_calls": "text"}
"""Columns that only some jobs have -> the usual column that they stand after."""
_LABEL_COLUMNS = ("id", "label", "confidence", "answered_by", "error_code", "error_message")
_TYPES = {
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "reasoning_tokens": "int64",
    "confidence": "float64",
}
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
        reasoning: What the model wrote between its tags of reasoning.
        reasoning_tokens: Its number of tokens, tags included.
        tool_calls: Calls of tools in OpenAI's format.
        content: `text` without the calls; None if it is `text`.
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
    reasoning: str | None = None
    reasoning_tokens: int | None = None
    tool_calls: list[dict[str, Any]] | None = None
    content: str | None = None

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
    match path.suffix.lower():
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
    if output_format(path) != "jsonl":
        raise ConfigError(
            f"OpenAI batch output is JSONL, but the output is {path}", "end it in .jsonl"
        )


def write_output(
    path: Path,
    rows: Iterable[OutputRow],
    *,
    openai: OpenAIOutput | None = None,
    labels: bool = False,
    columns: Sequence[str] = (),
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
        columns: Further columns: `reasoning`, `reasoning_tokens`, `tool_calls`.

    Returns:
        The number of rows.

    Raises:
        ConfigError: For a suffix that is not known.
        OutputError: If the file cannot be written. A file that was at `path` before is unchanged.
    """
    kind = output_format(path)
    if openai is not None:
        check_openai_output(path)
    with atomic_file(path) as file:
        if openai is not None:
            return _write_lines(file, (_openai_line(row, openai) for row in rows), "custom_id")
        return _WRITERS[kind](file, rows, _LABEL_COLUMNS if labels else _with(columns))


def _with(columns: Sequence[str]) -> list[str]:
    """Return the usual columns and these, each after the one that it belongs to."""
    found = list(_COLUMNS)
    for name in sorted(columns, key=list(_AFTER).index, reverse=True):
        found.insert(found.index(_AFTER[name]) + 1, name)
    return found


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
    """Return `document` as a line of JSON with the exact digits of its id."""
    items = []
    for name, value in document.items():
        item = json_bytes({name: 0 if name == id_name else value})[1:-2]  # without braces
        items.append(item[:-1] + value.encode() if name == id_name else item)
    return b"{" + b", ".join(items) + b"}\n"


def _jsonl_line(row: OutputRow, columns: Sequence[str]) -> dict[str, Any]:
    if row.error_code is not None:
        error = {"code": row.error_code, "message": row.error_message, "line": row.line}
        return {"id": row.id, "error": error}
    kept = [name for name in columns if not name.startswith("error_")]
    return {
        name: getattr(row, name) if name in ("id", "tool_calls") else _cell(row, name)
        for name in kept
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
    content = row.text if row.content is None else row.content
    choice = choice_document(
        kind,
        0,
        content,
        row.log_probs,
        row.finish_reason,
        reasoning=row.reasoning,
        tool_calls=row.tool_calls,
    )
    return response_document(
        response_head(kind, name, openai.created, openai.model), [choice], usage
    )


def _write_csv(file: IO[bytes], rows: Iterable[OutputRow], columns: Sequence[str]) -> int:
    text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
    # csv's own line end, "\r\n": only then do all Python versions quote both characters.
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
    """Return the value of a row in a column of a table."""
    if name == "id":
        return str(row.id)
    if name == "tool_calls":
        return None if row.tool_calls is None else json.dumps(row.tool_calls, ensure_ascii=False)
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
