"""The rows a comparison runs: drawn once, written down, the same for every trial."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from packhorse.config import CsvQuoting, InputConfig
from packhorse.data import Request, free_id
from packhorse.errors import ConfigError, InputError
from packhorse.inputs import read_fields, read_rows
from packhorse.storage.atomic_files import atomic_file

SAMPLE_SEED = 20_250_101


@dataclass(frozen=True, slots=True)
class Sample:
    """path: a JSONL file of the rows. requests: the rows, in input order. skipped: input rows that
    could not be read. total: readable rows of the input. sha256: of the file. labels: the right
    answer of each row where it has one; empty when none were asked for."""

    path: Path
    requests: tuple[Request, ...]
    skipped: int
    total: int
    sha256: str
    labels: tuple[str | None, ...] = ()


def take_sample(
    source: Path,
    reading: InputConfig,
    rows: int,
    path: Path,
    labels: str | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> Sample:
    """Draws `rows` readable rows at random with a fixed seed (all, if there are no more) and writes
    them to `path` in input order. The input is read twice: to count, then to draw. labels: the
    field that holds the right answers.

    Raises InputError when no row is readable and for labels of an input without fields, ConfigError
    for rows = 0, for rows that the sample file cannot hold, and where no row drawn has a label.
    """
    if rows < 1:
        raise ConfigError(f"a sample of {rows} rows", "give a sample of at least 1 row")
    total = skipped = 0
    for row in read_rows(source, reading, report):
        if isinstance(row, Request):
            total += 1
        else:
            skipped += 1
    if total == 0:
        raise InputError(f"no row of {source} can be read", "see why with: packhorse run")
    drawn = set(random.Random(SAMPLE_SEED).sample(range(total), min(rows, total)))  # noqa: S311
    readable = (row for row in read_rows(source, reading) if isinstance(row, Request))
    requests = _with_unique_ids(row for number, row in enumerate(readable) if number in drawn)
    with atomic_file(path) as file:
        for line in _lines(requests):
            file.write(line)
    digest = sha256(path.read_bytes()).hexdigest()
    found = _labels(source, requests, labels, reading.csv_quoting) if labels is not None else ()
    return Sample(path, requests, skipped, total, digest, found)


def _labels(
    source: Path, requests: tuple[Request, ...], field: str, csv_quoting: CsvQuoting
) -> tuple[str | None, ...]:
    """The text of `field` of each request, None where it is missing or blank."""
    wanted = {request.index for request in requests}
    labels = {
        row.index: row.values[field]
        for row in islice(read_fields(source, [field], csv_quoting), max(wanted) + 1)
        if row.index in wanted and row.values.get(field, "").strip()
    }
    if not labels:
        raise ConfigError(
            f"no sampled row has a label in {field!r}", "name the field of the right answers"
        )
    return tuple(labels.get(request.index) for request in requests)


def _with_unique_ids(requests: Iterable[Request]) -> tuple[Request, ...]:
    """The rows, where none has an id that another one brings."""
    found = tuple(requests)
    taken = {str(request.id) for request in found if request.has_own_id}

    def unique(request: Request) -> Request:
        if request.has_own_id:
            return request
        chosen = free_id(str(request.id), taken.__contains__)
        taken.add(chosen)
        return replace(request, id=chosen)

    return tuple(map(unique, found))


def _lines(requests: tuple[Request, ...]) -> Iterator[bytes]:
    for request in requests:
        if request.bare:
            raise ConfigError(
                "compare cannot sample /v1/completions batch lines",
                "give it the same prompts as JSONL",
            )
        name = "prompt" if isinstance(request.content, str) else "messages"
        row: dict[str, Any] = {"id": request.id, name: request.content, **request.options}
        row.pop("top_log_probs", None)  # is asked for by batch lines only and changes no text
        yield json.dumps(row).encode() + b"\n"
