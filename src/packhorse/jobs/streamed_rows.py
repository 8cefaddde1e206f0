"""Rows of a job as lines of JSON on standard output, as they finish (`-o -`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from packhorse.errors import ConfigError, InputError, OutputError
from packhorse.jobs.columns import stored_columns
from packhorse.jobs.journal import Journal, Record
from packhorse.outputs import OutputRow, row_as_json
from packhorse.outputs.columns import output_columns


class StreamedRows:
    """Writes each finished row once; a job that is continued begins with those it already has.

    Args:
        file: Where lines are written; each is flushed.
        journal: The journal of the job; rows must be registered.
        is_ordered: Whether rows are written in the order of the input, each as soon as all rows
            before it have finished.

    Raises:
        ConfigError: Columns of the input are kept, which needs the order of the input, or the rows
            are OpenAI batch lines.
    """

    def __init__(self, file: BinaryIO, journal: Journal, *, is_ordered: bool) -> None:
        self._file, self._journal, self._is_ordered = file, journal, is_ordered
        self._position = 0
        self.num_written = 0
        kept, self._output_column = stored_columns(journal)
        if kept is not None and not is_ordered:
            raise ConfigError(
                "columns of the input can be kept on standard output only in its order",
                "add --ordered, or --keep none",
            )
        self._kept: Iterator[Mapping[str, Any]] | None = None if kept is None else kept.rows()
        self._kept_columns = kept
        if journal.meta("openai"):
            raise ConfigError(
                "OpenAI batch output is a file, not standard output", "name a .jsonl file with -o"
            )

    def begin(self) -> None:
        """Write the rows that have finished already, those that could not be read included."""
        if self._is_ordered:
            self._advance()
            return
        for record in self._journal.records():
            if _is_finished(record):
                self._write(record, {})

    def row_finished(self, position: int) -> None:
        """Write the row at this place of the input, or in order as many rows as have finished."""
        if self._is_ordered:
            self._advance()
        elif (record := self._journal.record_at(position)) is not None:
            self._write(record, {})

    def _advance(self) -> None:
        while (record := self._journal.record_at(self._position)) is not None:
            if not _is_finished(record):
                return
            kept = {} if self._kept is None else next(self._kept, None)
            if kept is None:
                raise InputError(
                    "the input, whose columns are kept, has other rows than the journal",
                    "run the job's command again",
                )
            self._write(record, kept)
            self._position += 1

    def _write(self, record: Record, kept: Mapping[str, Any]) -> None:
        journal = self._journal
        columns = output_columns(
            bool(journal.meta("labels")),
            self._output_column,
            self._kept_columns,
            journal.columns,
            journal.meta("properties"),
            are_values=bool(journal.meta("are_values")),
        )
        try:
            self._file.write(row_as_json(row_of(record), kept, columns))
            self._file.flush()
        except (OSError, ValueError) as error:
            raise OutputError(
                f"standard output cannot be written: {error}",
                "run the same command again: it writes all rows, and runs only those that are left",
            ) from error
        self.num_written += 1


def row_of(record: Record) -> OutputRow:
    """Return a row of the journal as a row of the output; one without a result is an error."""
    is_pending = record.finish_reason is None and record.error_code is None
    return OutputRow(
        id=record.id,
        text=record.text,
        finish_reason=record.finish_reason,
        prompt_tokens=record.prompt_tokens,
        completion_tokens=record.completion_tokens,
        error_code="pending" if is_pending else record.error_code,
        error_message="this row has not run yet" if is_pending else record.error_message,
        line=record.line,
        chat=record.chat,
        **(record.note or {}),
    )


def _is_finished(record: Record) -> bool:
    return record.finish_reason is not None or record.error_code is not None
