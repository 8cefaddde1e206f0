"""Columns of a job's output: chosen when the input is read, found again when it is exported.

The values of kept columns are not in the journal. They are read again from the input when the
output is written, if its digest is still the one that the journal has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from packhorse.config import InputConfig, OutputConfig
from packhorse.errors import ConfigError, InputError
from packhorse.inputs import InputFiles, Source, detect_format, files_of, format_value
from packhorse.inputs.foreign_content import input_name
from packhorse.inputs.kept import KeptColumns, select_columns
from packhorse.jobs.journal import Journal
from packhorse.jobs.workspace import DOWNLOADS
from packhorse.outputs import TEXT
from packhorse.storage.remote_files import copy_of
from packhorse.storage.urls import is_url

NAME = "output"
"""Name of the journal's entry about the columns of the output."""


class ChosenColumns:
    """The columns of a job's output.

    Create it before the input is read, and store its `entry` when the rows are registered, so that
    rows and columns are of one state of the file.

    Args:
        source: What is read.
        names: Its files as the journal names them; "-" for standard input, which is in its folder.
        reading, writing: Settings of the job.
        report: Takes a warning about columns that are left out.

    Raises:
        ConfigError, InputError: As `select_columns`.
    """

    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        reading: InputConfig,
        writing: OutputConfig,
        report: Callable[[str], None],
    ) -> None:
        first = files_of(source)[0]
        if writing.output_column != TEXT and detect_format(first) == "openai-batch":
            raise ConfigError(
                f"{input_name(first)} contains OpenAI batch lines, and their output has no "
                f"column {format_value(writing.output_column)}",
                "leave --output-column out",
            )
        self._kept = select_columns(source, reading, writing, report)
        self._names = list(names)
        self._writing = writing
        self._before = _state(files_of(source))

    def entry(self) -> dict[str, Any]:
        """Return the columns as the journal stores them under NAME.

        Raises:
            InputError: The file has changed since this object was created.
        """
        kept = None
        if self._kept is not None:
            kept = {**asdict(self._kept), "files": self._names, "digest": self._kept.digest()}
            if _state(self._kept.files) != self._before:
                raise InputError(
                    f"{input_name(self._kept.files[0])} changed while it was read",
                    "run the same command again when it is complete",
                )
        return {"output_column": self._writing.output_column, "kept": kept}


def stored_columns(
    journal: Journal, writing: OutputConfig | None = None
) -> tuple[KeptColumns | None, str]:
    """Return the kept columns and the name of the output column.

    Args:
        journal: The journal of a job.
        writing: Columns to keep in place of those of the job.

    Raises:
        InputError: The input is not the file whose rows are in the journal, or lacks a column.
    """
    stored: dict[str, Any] = journal.meta(NAME) or {"output_column": TEXT, "kept": None}
    keep = "auto" if writing is None else writing.keep
    if keep == "none" or (keep == "auto" and stored["kept"] is None):
        return None, stored["output_column"]
    if stored["kept"] is None:
        raise InputError(
            "the job kept no columns, so its journal does not say what its input contained",
            "run the same command again with --keep: finished rows are not run again",
        )
    digest, files = stored["kept"].pop("digest"), stored["kept"].pop("files")
    names = stored["kept"].pop("names")
    paths = tuple(_source(journal.path.parent, name) for name in files)
    source = InputFiles(paths)
    kept = KeptColumns(paths, None if names is None else tuple(names), **stored["kept"])
    _check_digest(kept, digest)
    if keep != "auto":
        reading = InputConfig(
            id_column=None if kept.id_field == "id" else kept.id_field,
            csv_quoting=kept.csv_quoting,
            limit=kept.limit,
        )
        assert writing is not None
        return select_columns(source, reading, writing), stored["output_column"]
    return kept, stored["output_column"]


def _source(folder: Path, name: str) -> Path:
    """Return the file that a journal's folder or the file system has of an input."""
    if name == "-":
        return folder / "input.stdin"
    return copy_of(name, folder / DOWNLOADS) if is_url(name) else Path(name)


def _check_digest(kept: KeptColumns, digest: str) -> None:
    hint = (
        "bring the file back, run the job's command again, or write the results alone with "
        "packhorse export --keep none"
    )
    try:
        is_same = kept.digest() == digest
    except InputError as error:
        raise InputError(f"columns of the input are kept, but {error}", hint) from error
    if not is_same:
        raise InputError(
            f"columns of {input_name(kept.files[0])} are kept, but the input changed since its "
            "rows were read",
            hint,
        )


def _state(files: Sequence[Path]) -> list[tuple[int, int]]:
    found = [path.stat() for path in files]
    return [(each.st_size, each.st_mtime_ns) for each in found]
