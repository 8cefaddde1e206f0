"""How the column of the prompt is found among the columns of a table."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from packhorse.errors import InputError
from packhorse.inputs.foreign_content import called
from packhorse.inputs.rows import Layout
from packhorse.inputs.template import Template

_COLUMNS_SHOWN = 20


def find_prompt(
    path: Path,
    columns: Sequence[str],
    template: Template | None,
    prompt_column: str | None,
    *,
    has_header: bool = True,
) -> Layout:
    """Which of `columns` make the prompt: the template's, the one named, or "prompt" or "text".

    has_header: the columns are named by the first line of the file, not by its schema.

    Raises InputError naming the columns there are, and the one that was probably meant.
    """
    if template is not None:
        layout = Layout(template, columns=tuple(columns))
    elif prompt_column is not None:
        layout = Layout(prompt_field=prompt_column, columns=tuple(columns))
    elif "prompt" in columns or "text" in columns:
        name = "prompt" if "prompt" in columns else "text"
        layout = Layout(prompt_field=name, columns=tuple(columns))
    else:
        advice = "say which one to use with --prompt-column"
        raise no_column(path, columns, "prompt", advice, has_header=has_header)
    for name in layout.prompt_names:
        if name not in columns:
            raise no_column(path, columns, name, "choose one of these", has_header=has_header)
    for name in layout.names:
        if columns.count(name) > 1:
            raise InputError(
                f"{called(path)} has more than one column {name!r}", "rename all but one"
            )
    return layout


def looks_quoted(cell: str) -> bool:
    """Whether a cell is written as quoting CSV writes one."""
    inner = cell[1:-1]
    return (
        cell[:1] == '"'
        and cell[-1:] == '"'
        and len(cell) > 1
        and '"' not in inner.replace('""', "")
    )


def no_column(
    path: Path, columns: Sequence[str], name: str, advice: str, *, has_header: bool = True
) -> InputError:
    """The error for a name that is none of `columns`: it lists them and guesses what was meant."""
    shown = ", ".join(repr(column) for column in columns[:_COLUMNS_SHOWN])
    more = ", ..." if len(columns) > _COLUMNS_SHOWN else ""
    original = {column.lower(): column for column in columns}
    close = difflib.get_close_matches(name.lower(), original, n=1)
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|,"):
        advice = (
            "the columns seem to be separated otherwise: .csv is read with commas, .tsv with tabs, "
            "and a first line such as sep=; names another separator"
        )
    elif any(map(looks_quoted, columns)):
        advice = "the names are in quotes: add --csv-quoting minimal"
    elif close:
        advice = f"did you mean {original[close[0]]!r}? {advice[0].upper()}{advice[1:]}"
    elif has_header:
        advice += "; if they are data, the file has no header, which it needs"
    return InputError(f"{called(path)} has no column {name!r}; it has {shown}{more}", advice)
