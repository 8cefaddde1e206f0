"""CSV and TSV with a header.

A .csv file is quoted as in RFC 4180. A .tsv file has no quoting, as in IANA's
text/tab-separated-values: one line is one row. `InputConfig.csv_quoting` overrides both.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO

from packhorse.config import CsvQuoting, InputConfig
from packhorse.errors import InputError
from packhorse.inputs import lines
from packhorse.inputs.columns import find_prompt_column, is_quoted_cell
from packhorse.inputs.rows import Record, Report, RowLayout
from packhorse.inputs.template import Template
from packhorse.openai_format.row_errors import RowError, format_value
from packhorse.storage.compressed_files import content_suffix, open_content

_HEADER_HINT = "the first line of a CSV file names its columns, for example: id,prompt"
# Excel writes the separator in a line of its own before the header.
_SEPARATOR_LINE = re.compile(r'"?sep=([^"\r\n])"?[\r\n]*', re.IGNORECASE)


def allows_quotes(path: Path, quoting: CsvQuoting) -> bool:
    """Return whether cells of this CSV or TSV file may be quoted."""
    if quoting == "auto":
        return content_suffix(path) != ".tsv"
    return quoting == "minimal"


def open_csv(
    path: Path, template: Template | None, config: InputConfig, report: Report
) -> tuple[RowLayout, Iterator[Record]]:
    """Return the layout, found from the header, and the records.

    A record that breaks the rules of quoting is an error of that record. One whose quote is never
    closed includes the lines after it, and its error says which. Blank lines are skipped. A first
    line such as "sep=;" sets the separator.

    Args:
        path: The file.
        template: Builds the prompt from columns; None if one column holds it.
        config: Names the prompt column and the quoting.
        report: Called once if cells of a file that is read without quoting look quoted.

    Raises:
        InputError: If the header cannot be read or has no column for the prompt.
    """
    quoted = allows_quotes(path, config.csv_quoting)
    with _open(path) as file:
        header = _read_header(path, _CsvRecords(path, file, quoted))
    layout = find_prompt_column(
        path,
        header,
        template,
        config.prompt_column,
        id_column=config.id_column,
        messages_format=config.messages_format,
    )
    layout = replace(layout, has_text_options=True)
    return layout, _read(path, header, layout, quoted, report)


def _open(path: Path) -> TextIO:
    return io.TextIOWrapper(
        open_content(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )


def _read_header(path: Path, records: _CsvRecords) -> list[str]:
    cells = records.next()
    if cells is None:
        raise InputError(f"{path} has no rows", _HEADER_HINT)
    if isinstance(cells, RowError):
        raise InputError(f"{path} has no readable header: {cells}", _HEADER_HINT)
    if not any(cell.strip() for cell in cells):
        raise InputError(f"{path} has no header: its first line names no column", _HEADER_HINT)
    for cell in cells:
        if isinstance(_checked(cell, "header", (1, 1)), RowError):
            raise InputError(f"the header of {path} is not UTF-8", _UTF8_HINT)
    return [cell.strip() for cell in cells]


_UTF8_HINT = "convert the file to UTF-8, for example with: iconv -f WINDOWS-1252 -t UTF-8 IN > OUT"


def _read(
    path: Path, header: list[str], layout: RowLayout, quoted: bool, report: Report
) -> Iterator[Record]:
    places = {name: header.index(name) for name in layout.names if name in header}
    used = tuple(places.values())
    has_reported = quoted
    with _open(path) as file:
        records = _CsvRecords(path, file, quoted)
        _read_header(path, records)
        number = 0
        while (cells := records.next()) is not None:
            number += 1
            if not has_reported and _has_quoted_cell(cells, used):
                has_reported = True
                report(
                    f"{path}, line {records.first}: a cell is in quotes, and they are read as "
                    "text; if they are not part of it, add --csv-quoting minimal"
                )
            span = (records.first, records.last)
            read = partial(_read_cells, cells, len(header), places, layout.id_field, span, quoted)
            yield Record(records.first, f"row-{number}", read, records.digest)


def _has_quoted_cell(cells: list[str] | RowError, used: Sequence[int]) -> bool:
    if isinstance(cells, RowError):
        return False
    # A loop: a generator expression would take 10 % of the reading time.
    for place in used:
        if place < len(cells) and cells[place][:1] == '"' and is_quoted_cell(cells[place]):
            return True
    return False


def _read_cells(
    cells: list[str] | RowError,
    width: int,
    places: Mapping[str, int],
    id_field: str,
    span: tuple[int, int],
    quoted: bool,
) -> Mapping[str, Any]:
    if isinstance(cells, RowError):
        raise cells
    if len(cells) != width:
        raise RowError("ragged_row", _ragged(cells, width, span, quoted))
    fields = {name: _checked(cells[place], name, span) for name, place in places.items()}
    # CSV has no null: an empty id cell means that the row has no id of its own.
    return fields | {id_field: fields.get(id_field) or None}


def _ragged(cells: Sequence[str], width: int, span: tuple[int, int], quoted: bool) -> str:
    if quoted:
        advice = "look for a missing or extra comma or quote"
    elif any(cell.startswith('"') for cell in cells):
        advice = "if cells are in quotes, add --csv-quoting minimal"
    else:
        advice = "look for a missing or extra separator, or a line end inside a cell"
    return f"{_where(span)} must have {width} cells, as the header has, got {len(cells)}; {advice}"


def _where(span: tuple[int, int]) -> str:
    first, last = span
    return f"line {first}" if first == last else f"lines {first} to {last}"


def _checked(cell: str, name: str, span: tuple[int, int]) -> str | RowError:
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(cell[error.start]) & 0xFF
        return RowError(
            "invalid_utf8",
            f"{_where(span)}: character {error.start + 1} of column {format_value(name)} "
            f"(0x{byte:02x}) is not UTF-8; {_UTF8_HINT}",
            cell.encode("utf-8", "surrogateescape"),
        )
    return cell


class _CsvRecords:
    """Records of a CSV file, one at a time. `csv.reader` starts afresh after an error.

    Attributes:
        first, last: First and last line of the last record.
        digest: Digest of the bytes of the last record.
    """

    def __init__(self, path: Path, file: TextIO, quoted: bool) -> None:
        # The limit is global to the process, so it is only raised.
        csv.field_size_limit(max(csv.field_size_limit(), lines.MAX_LINE_BYTES))
        self._lines = _CsvLines(file)
        separator = _SEPARATOR_LINE.fullmatch(file.readline(16))
        if separator is not None:
            self._lines.number = 1
            delimiter = separator[1]
        else:
            file.seek(0)
            delimiter = "\t" if content_suffix(path) == ".tsv" else ","
        self._reader = csv.reader(
            self._lines,
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
            strict=True,
        )
        self.first = self.last = 0
        self.digest = b""

    def next(self) -> list[str] | RowError | None:
        """Return the cells of the next record that is not blank, or its error; None at the end."""
        cells: list[str] | RowError = []
        while not cells:
            self.first = self._lines.number + 1
            self._lines.hash = blake2b(digest_size=16)
            fault = None
            try:
                cells = next(self._reader)
            except StopIteration:
                return None
            except (csv.Error, RowError) as error:
                fault = error
            self.last = self._lines.number
            if fault is not None:
                cells = _csv_fault(_where((self.first, self.last)), fault)
        self.digest = self._lines.hash.digest()
        return cells


def _csv_fault(where: str, error: csv.Error | RowError) -> RowError:
    if isinstance(error, RowError):
        return RowError(error.code, f"{where}: {error}")
    return RowError(
        "malformed_csv",
        f"{where}: {error}; close the quotes, write a quote inside quotes twice, or add "
        "--csv-quoting none if quotes are ordinary characters",
    )


class _CsvLines:
    """Lines for `csv.reader`, line ends kept; a line that is too long raises RowError.

    Iteration can continue after that error.

    Attributes:
        number: Lines returned so far.
        hash: Digest of the lines returned since it was last replaced.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.number = 0
        self.hash = blake2b(digest_size=16)

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = self._next_part()
        if not line:
            raise StopIteration
        self.number += 1
        part = line
        while part and not part.endswith(("\n", "\r")):
            part = self._next_part()
        if len(line) > lines.MAX_LINE_BYTES and not line.endswith(("\n", "\r")):
            raise lines.line_too_long_error()
        return line

    def _next_part(self) -> str:
        part = self._file.readline(lines.MAX_LINE_BYTES + 1)
        self.hash.update(part.encode("utf-8", "surrogateescape"))
        return part
