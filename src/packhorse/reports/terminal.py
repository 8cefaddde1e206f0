"""Lines and column tables for a terminal or a pipe."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Protocol

from packhorse.reports.columns import Heading
from packhorse.reports.text import visible

if TYPE_CHECKING:
    from rich.text import Text

Lines = Iterator["Text"]

NARROWEST = 60


class Section(Protocol):
    """A part of a report, in lines of at most `width` characters."""

    def __call__(self, width: int) -> Lines: ...


def rendered(sections: Sequence[Section], width: int, *, colour: bool) -> str:
    """Return the sections with a blank line between them; colour: use terminal escape codes."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(),
        width=max(width, NARROWEST),
        force_terminal=colour,
        color_system="standard" if colour else None,
        legacy_windows=False,
        _environ={},
    )
    with console.capture() as captured:
        for section in sections:
            lines = list(section(console.width))
            for each in lines:
                console.print(each, soft_wrap=True)
            if lines:
                console.print()
    return "\n".join(each.rstrip() for each in captured.get().rstrip().split("\n"))


def paragraph(words: str, width: int, style: str = "", first: str = "") -> Lines:
    """Yield text wrapped to `width`; later lines are indented by the length of `first`."""
    for each in wrap(
        visible(words), width, initial_indent=first, subsequent_indent=" " * len(first)
    ):
        yield text(each, style)


def cells_line(name: str, cells: Sequence[tuple[str, int]], style: str = "") -> Text:
    """Return a line of a name and right-aligned cells of (text, width)."""
    return text(name + "".join("  " + cell.rjust(width) for cell, width in cells), style)


@dataclass(frozen=True, slots=True)
class TextColumn:
    """Heading and cells of a column; cells: by row name."""

    heading: Heading
    cells: Mapping[str, str]

    @property
    def width(self) -> int:
        return max(map(len, (*self.heading.lines, *self.cells.values())))


def fitting_columns(columns: Sequence[TextColumn], room: int) -> list[TextColumn]:
    """Return the columns without the least important ones, until the rest fits into `room`."""
    kept = list(columns)
    for column in sorted(columns, key=lambda each: -each.heading.drop_order):
        fits = sum(each.width + 2 for each in kept) <= room
        if fits or not column.heading.drop_order:
            break
        kept.remove(column)
    return kept


def heading_lines(columns: Sequence[TextColumn], indent: int) -> Lines:
    """Yield the two lines of headings."""
    for index in (0, 1):
        cells = [(column.heading.lines[index], column.width) for column in columns]
        yield cells_line(" " * indent, cells, "dim")


def row_line(name: str, row: str, columns: Sequence[TextColumn], style: str) -> Text:
    """Return one row of the table; row: key of its cells."""
    return cells_line(name, [(column.cells[row], column.width) for column in columns], style)


def text(words: str, style: str = "") -> Text:
    """Return one line without wrapping."""
    from rich.text import Text

    return Text(visible(words), style=style)
