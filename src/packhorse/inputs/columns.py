"""Find the prompt column among the columns of a table."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from packhorse.config import MessagesFormat
from packhorse.errors import InputError
from packhorse.inputs.conversations import CONVERSATIONS
from packhorse.inputs.foreign_content import input_name
from packhorse.inputs.rows import TOKEN_IDS, RowLayout
from packhorse.inputs.template import Template

_COLUMNS_SHOWN = 20


def find_prompt_column(
    path: Path,
    columns: Sequence[str],
    template: Template | None,
    prompt_column: str | None,
    *,
    id_column: str | None = None,
    messages_format: MessagesFormat = "auto",
    has_header: bool = True,
) -> RowLayout:
    """Return the layout of a table whose prompt is in some of `columns`.

    Args:
        path: The file, for messages.
        columns: Names of all columns.
        template: Builds the prompt from columns, if given.
        prompt_column: Holds the prompt, if given; else "prompt", "text", "messages" or
            "prompt_token_ids" does.
        id_column: Holds the ids, if given; else "id" does, if it exists.
        messages_format: How messages are stored; "sharegpt" reads "conversations" first.
        has_header: Whether the first line of the file names the columns, not its schema.

    Raises:
        InputError: If there is no such column; it lists the columns and suggests a similar name.
    """
    if template is not None:
        layout = RowLayout(template, columns=tuple(columns))
    elif prompt_column is not None:
        layout = RowLayout(prompt_field=prompt_column, columns=tuple(columns))
    elif messages_format == "sharegpt" and CONVERSATIONS in columns:
        layout = RowLayout(columns=tuple(columns), messages_format=messages_format)
    elif "prompt" in columns or "text" in columns:
        name = "prompt" if "prompt" in columns else "text"
        layout = RowLayout(prompt_field=name, columns=tuple(columns))
    elif "messages" in columns or TOKEN_IDS in columns:
        layout = RowLayout(columns=tuple(columns))
    else:
        advice = "say which one to use with --prompt-column"
        raise missing_column_error(path, columns, "prompt", advice, has_header=has_header)
    if id_column is not None:
        layout = replace(layout, id_field=id_column)
    is_asked_for = template is not None or layout.prompt_field is not None
    asked = (*(layout.prompt_columns if is_asked_for else ()), *filter(None, [id_column]))
    for name in asked:
        if name not in columns:
            raise missing_column_error(
                path, columns, name, "choose one of these", has_header=has_header
            )
    for name in layout.names:
        if columns.count(name) > 1:
            raise InputError(
                f"{input_name(path)} has more than one column {name!r}", "rename all but one"
            )
    return layout


def is_quoted_cell(cell: str) -> bool:
    """Return whether a cell looks as CSV with quoting writes it."""
    inner = cell[1:-1]
    return (
        cell[:1] == '"'
        and cell[-1:] == '"'
        and len(cell) > 1
        and '"' not in inner.replace('""', "")
    )


def missing_column_error(
    path: Path, columns: Sequence[str], name: str, advice: str, *, has_header: bool = True
) -> InputError:
    """Return the error for a name that is not in `columns`: it lists them and suggests one."""
    listed = ", ".join(repr(column) for column in columns[:_COLUMNS_SHOWN])
    more = ", ..." if len(columns) > _COLUMNS_SHOWN else ""
    original = {column.lower(): column for column in columns}
    close = difflib.get_close_matches(name.lower(), original, n=1)
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|,"):
        advice = (
            "the columns seem to have another separator: .csv is read with commas, .tsv with tabs, "
            "and a first line such as sep=; names another separator"
        )
    elif any(map(is_quoted_cell, columns)):
        advice = "the names are in quotes: add --csv-quoting minimal"
    elif close:
        advice = f"did you mean {original[close[0]]!r}? {advice[0].upper()}{advice[1:]}"
    elif has_header:
        advice += "; if they are data, the file has no header, which it needs"
    return InputError(f"{input_name(path)} has no column {name!r}; it has {listed}{more}", advice)
