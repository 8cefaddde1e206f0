"""CSV (and .tsv, parted by tabs) with a header, quoted as RFC 4180 has it."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO

from packhorse.errors import InputError
from packhorse.sources import lines
from packhorse.sources.columns import find_prompt
from packhorse.sources.faults import RowError
from packhorse.sources.rows import Layout, Record
from packhorse.sources.template import Template

_HEADER_HINT = "the first line of a CSV file names its columns, for example: id,prompt"


def open_csv(
    path: Path, template: Template | None, prompt_column: str | None
) -> tuple[Layout, Iterator[Record]]:
    """The layout, found from the header, and the records; their numbers do not count the header.

    A record that breaks the rules of quoting is a fault of that record; one whose quote is never
    closed takes the lines after it along, and says which. Blank lines are no records.
    """
    with _open(path) as file:
        header = _read_header(path, _CsvRecords(path, file))
    layout = find_prompt(path, header, template, prompt_column)
    layout = replace(layout, has_text_options=True)
    return layout, _read(path, header, layout)


def _open(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _read_header(path: Path, records: _CsvRecords) -> list[str]:
    cells = records.next()
    if cells is None:
        raise InputError(f"{path} has no rows", _HEADER_HINT)
    if isinstance(cells, RowError):
        raise InputError(f"{path} has no readable header: {cells}", _HEADER_HINT)
    if not any(cell.strip() for cell in cells):
        raise InputError(f"{path} has no header: its first line names no column", _HEADER_HINT)
    for cell in cells:
        if isinstance(_checked(cell, "header"), RowError):
            raise InputError(f"the header of {path} is not UTF-8", "convert the file to UTF-8")
    return [cell.strip() for cell in cells]


def _read(path: Path, header: list[str], layout: Layout) -> Iterator[Record]:
    places = {name: header.index(name) for name in layout.names if name in header}
    with _open(path) as file:
        records = _CsvRecords(path, file)
        _read_header(path, records)
        number = 0
        while (cells := records.next()) is not None:
            number += 1
            read = partial(_read_cells, cells, len(header), places, records.where)
            yield Record(number, f"row-{number}", read, records.digest)


def _read_cells(
    cells: list[str] | RowError, width: int, places: Mapping[str, int], where: str
) -> Mapping[str, Any]:
    if isinstance(cells, RowError):
        raise cells
    if len(cells) != width:
        raise RowError(
            "ragged_row",
            f"{where} has {len(cells)} cells, the header has {width}; "
            "is a comma or a quote missing, or one too many?",
        )
    fields = {name: _checked(cells[place], where) for name, place in places.items()}
    # CSV has no null: an empty cell is a row without an id of its own.
    return fields | {"id": fields.get("id") or None}


def _checked(cell: str, where: str) -> str | RowError:
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(cell[error.start]) & 0xFF
        return RowError(
            "invalid_utf8",
            f"{where}: character {error.start + 1} of a cell (0x{byte:02x}) is not UTF-8; "
            "convert the file to UTF-8",
        )
    return cell


class _CsvRecords:
    """The records of a CSV file, one at a time. `csv.reader` starts afresh after an error.

    where: the lines of the file the last record stands on.
    digest: of the bytes of the last record.
    """

    def __init__(self, path: Path, file: TextIO) -> None:
        # The limit is the whole process's; it is only ever raised.
        csv.field_size_limit(max(csv.field_size_limit(), lines.MAX_LINE_BYTES))
        self._lines = _CsvLines(file)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        self._reader = csv.reader(self._lines, delimiter=delimiter, strict=True)
        self.where = ""
        self.digest = b""

    def next(self) -> list[str] | RowError | None:
        """The cells of the next record that is not blank, what is wrong with it, or None."""
        cells: list[str] | RowError = []
        while not cells:
            first = self._lines.number + 1
            self._lines.hash = blake2b(digest_size=16)
            fault = None
            try:
                cells = next(self._reader)
            except StopIteration:
                return None
            except (csv.Error, RowError) as error:
                fault = error
            last = self._lines.number
            self.where = f"line {first}" if first == last else f"lines {first} to {last}"
            if fault is not None:
                cells = _csv_fault(self.where, fault)
        self.digest = self._lines.hash.digest()
        return cells


def _csv_fault(where: str, error: csv.Error | RowError) -> RowError:
    if isinstance(error, RowError):
        return RowError(error.code, f"{where}: {error}")
    return RowError(
        "malformed_csv",
        f"{where}: {error}; is a quote missing? A quote inside quotes is written twice",
    )


class _CsvLines:
    """Lines for `csv.reader`, line ends kept; raises RowError for one that is too long, goes on.

    number: lines given so far.
    hash: of the lines given since it was last renewed.
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
            raise lines.too_long_fault()
        return line

    def _next_part(self) -> str:
        part = self._file.readline(lines.MAX_LINE_BYTES + 1)
        self.hash.update(part.encode("utf-8", "surrogateescape"))
        return part
