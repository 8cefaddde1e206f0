"""Draw the rows of a comparison once and write them down for every trial."""

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
from packhorse.data import Request, TokenIds, free_id
from packhorse.errors import ConfigError, InputError
from packhorse.inputs import read_fields, read_rows
from packhorse.inputs.rows import TOKEN_IDS
from packhorse.openai_format.prompt_fields import write_prompt_options
from packhorse.openai_format.request_fields import write_options
from packhorse.storage.atomic_files import atomic_file

SAMPLE_SEED = 20_250_101


@dataclass(frozen=True, slots=True)
class Sample:
    """The drawn rows.

    Attributes:
        path: a JSONL file of the rows.
        requests: the rows, in input order.
        skipped: input rows that could not be read.
        total: readable rows of the input.
        sha256: of the file.
        labels: correct answer of each row, None if it has none; empty if none were requested.
    """

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
    """Draw `rows` readable rows with a fixed seed and write them to `path` in input order.

    All rows are taken if there are no more. The input is read twice: to count, then to draw.

    Args:
        labels: input field with the correct answers.

    Raises:
        InputError: no readable row, or labels requested of an input without fields.
        ConfigError: rows below 1, rows that the sample file cannot represent, or no drawn row with
            a label.
    """
    if rows < 1:
        raise ConfigError(f"the sample must have at least 1 row, got {rows}", "set --sample")
    total = skipped = 0
    for row in read_rows(source, reading, report):
        if isinstance(row, Request):
            total += 1
        else:
            skipped += 1
    if total == 0:
        raise InputError(
            f"no row of {source} can be read", "packhorse run shows the reason for each row"
        )
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
    """Return the text of `field` of each request; None if it is missing or blank."""
    wanted = {request.index for request in requests}
    labels = {
        row.index: row.values[field]
        for row in islice(read_fields(source, [field], csv_quoting), max(wanted) + 1)
        if row.index in wanted and row.values.get(field, "").strip()
    }
    if not labels:
        raise ConfigError(
            f"no sampled row has a label in {field!r}",
            "set --labels to the field with the correct answers",
        )
    return tuple(labels.get(request.index) for request in requests)


def _with_unique_ids(requests: Iterable[Request]) -> tuple[Request, ...]:
    """Return the rows, with generated ids changed that collide with given ones."""
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
        if isinstance(request.content, TokenIds):
            name = TOKEN_IDS
        options = dict(request.options)
        for unused in ("top_log_probs", "prompt_log_probs"):  # they do not change the text
            options.pop(unused, None)
        fields = write_options(options, is_chat=False)
        fields |= write_prompt_options(request.prompt_options)
        row: dict[str, Any] = {"id": request.id, name: request.content, **fields}
        yield json.dumps(row).encode() + b"\n"
